//! What a machine may use of the host, and for how long: the section `[limits]`.

use super::duration::parse_duration;
use super::parse::{Reader, Value};
use super::size::show_size;
use super::{Given, Problem};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The least memory beyond the guest's with which all processes start.
const LEAST_MEMORY_BYTES: u64 = 32 << 20;
/// The most host CPUs' worth of time.
const MOST_CPUS: f64 = 1024.0;

/// The limits as they were asked for.
#[derive(Debug, Default)]
pub(crate) struct DraftLimits {
    /// How long the run may take.
    pub(crate) wall_time: Option<Given<Duration>>,
    /// How much CPU time its processes may use together.
    pub(crate) cpu_time: Option<Given<Duration>>,
    /// Memory in bytes that its processes may use together, beyond the guest's.
    pub(crate) memory: Option<Given<u64>>,
    /// Bytes that the guest may print.
    pub(crate) console: Option<Given<u64>>,
    /// Bytes that the guest may write to its disks.
    pub(crate) disk_writes: Option<Given<u64>>,
    /// Hundredths of a host CPU that its processes may use together at any time.
    pub(crate) cpus: Option<Given<u32>>,
}

/// The limits of a run; what is none is not limited.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunLimits {
    /// How long the run may take, from the start of the broker.
    pub(crate) wall_time: Option<Duration>,
    /// How much CPU time its processes may use together.
    pub(crate) cpu_time: Option<Duration>,
    /// Memory that its processes may use together, beyond the guest's.
    pub(crate) memory_bytes: Option<u64>,
    /// What the guest may print.
    pub(crate) console_bytes: Option<u64>,
    /// What the guest may write to its disks together.
    pub(crate) disk_write_bytes: Option<u64>,
    /// Hundredths of a host CPU that its processes may use together at any time.
    pub(crate) cpu_percent: Option<u32>,
}

/// The keys of the section.
pub(super) const KEYS: [&str; 6] = ["wall_time", "cpu_time", "memory", "console", "disk_writes", "cpus"];

impl Reader<'_> {
    /// Reads the section.
    pub(super) fn limits(&mut self, table: &DeTable<'_>) -> DraftLimits {
        DraftLimits {
            wall_time: table.get("wall_time").and_then(|v| self.duration(v, "limits.wall_time")),
            cpu_time: table.get("cpu_time").and_then(|v| self.duration(v, "limits.cpu_time")),
            memory: table.get("memory").and_then(|v| self.size(v, "limits.memory")),
            console: table.get("console").and_then(|v| self.size(v, "limits.console")),
            disk_writes: table.get("disk_writes").and_then(|v| self.size(v, "limits.disk_writes")),
            cpus: table.get("cpus").and_then(|v| self.cpu_share(v, "limits.cpus")),
        }
    }

    fn duration(&mut self, value: Value<'_, '_>, key: &str) -> Option<Given<Duration>> {
        let given =
            self.string(value, key, "write a time in quotes with a unit of ms, s, m, h or d, such as \"90s\"")?;
        match parse_duration(&given.value) {
            Ok(duration) => Some(Given { value: duration, origin: given.origin }),
            Err(error) => {
                self.problem(value, key, format!("is {:?}", given.value), error.to_string());
                None
            }
        }
    }

    fn cpu_share(&mut self, value: Value<'_, '_>, key: &str) -> Option<Given<u32>> {
        let right = "write how many CPUs' time it may use, from 0.01 to 1024, such as 1.5";
        let text = match value.get_ref() {
            DeValue::Integer(number) => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => {
                self.wrong_type(value, key, right);
                return None;
            }
        };
        let cpus = text.parse::<f64>().ok().filter(|cpus| (0.01..=MOST_CPUS).contains(cpus));
        match cpus.and_then(|cpus| format!("{:.0}", cpus * 100.0).parse().ok()) {
            Some(percent) => Some(Given { value: percent, origin: self.origin(value.span(), key) }),
            None => {
                self.problem(value, key, format!("is {text}"), right);
                None
            }
        }
    }
}

/// Checks the limits; `kept` is what each console file keeps, if that was said.
pub(super) fn check(draft: &DraftLimits, kept: Option<&Given<u64>>, problems: &mut Vec<Problem>) -> RunLimits {
    for zero in [&draft.console, &draft.disk_writes].into_iter().flatten().filter(|given| given.value == 0) {
        let right = "write a size such as \"64MiB\", or leave it out; `output = \"none\"` hides the console, and disks are \
                     read-only unless they say otherwise";
        problems.push(Problem::new(&zero.origin, "is 0", right));
    }
    if let Some(small) = draft.memory.as_ref().filter(|given| given.value < LEAST_MEMORY_BYTES) {
        let right = format!(
            "this is what all processes may use beyond the guest's memory; they need {}",
            show_size(LEAST_MEMORY_BYTES)
        );
        problems.push(Problem::new(&small.origin, format!("is {}", show_size(small.value)), right));
    }
    if let (Some(kept), Some(printed)) = (kept, &draft.console)
        && kept.value > printed.value
    {
        let what = format!("is {}, more than the guest may print at all ({})", show_size(kept.value), printed.origin);
        let right =
            "limits.console ends the run; leave console.limit out, or make it the smaller one, to keep less in files";
        problems.push(Problem::new(&kept.origin, what, right));
    }
    RunLimits {
        wall_time: draft.wall_time.as_ref().map(|given| given.value),
        cpu_time: draft.cpu_time.as_ref().map(|given| given.value),
        memory_bytes: draft.memory.as_ref().map(|given| given.value),
        console_bytes: draft.console.as_ref().map(|given| given.value),
        disk_write_bytes: draft.disk_writes.as_ref().map(|given| given.value),
        cpu_percent: draft.cpus.as_ref().map(|given| given.value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use std::path::Path;

    fn read(limits: &str) -> (RunLimits, Vec<String>) {
        let text = format!("[boot]\nkernel = \"k\"\n{limits}");
        let (draft, mut problems) = parse(Path::new("c.toml"), &text);
        let limits = check(&draft.limits, draft.limit.as_ref(), &mut problems);
        (limits, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn limits_are_read() {
        let (limits, problems) = read(
            "[limits]\nwall_time = \"10m\"\ncpu_time = \"90s\"\nmemory = \"64MiB\"\nconsole = \"1MiB\"\n\
             disk_writes = \"2GiB\"\ncpus = 1.5\n[console]\nlimit = \"1MiB\"\n",
        );
        assert_eq!(problems, [""; 0]);
        let expected = RunLimits {
            wall_time: Some(Duration::from_secs(600)),
            cpu_time: Some(Duration::from_secs(90)),
            memory_bytes: Some(64 << 20),
            console_bytes: Some(1 << 20),
            disk_write_bytes: Some(2 << 30),
            cpu_percent: Some(150),
        };
        assert_eq!(limits, expected);
        assert_eq!(read("[limits]\ncpus = 2\n").0.cpu_percent, Some(200));
        assert_eq!(read("[limits]\n").0, RunLimits::default());
    }

    #[test]
    fn wrong_limits_are_refused_with_line_and_key() {
        let unit = "write a whole number from 1 on with a unit of ms, s, m, h or d, such as \"90s\"";
        for (text, said) in [
            ("wall_time = \"90\"", format!("c.toml:4: limits.wall_time: is \"90\"; {unit}")),
            ("cpu_time = \"0s\"", format!("c.toml:4: limits.cpu_time: is \"0s\"; {unit}")),
            ("memory = \"1MiB\"", "c.toml:4: limits.memory: is 1 MiB; this is what all processes".to_owned()),
            ("disk_writes = 0", "c.toml:4: limits.disk_writes: is 0; write a size".to_owned()),
            ("console = \"lots\"", "c.toml:4: limits.console: is \"lots\"; write a whole number".to_owned()),
            ("cpus = 0", "c.toml:4: limits.cpus: is 0; write how many".to_owned()),
            ("cpus = nan", "c.toml:4: limits.cpus: is nan; write how many".to_owned()),
            ("cpus = \"2\"", "c.toml:4: limits.cpus: is a value of type string; write how many".to_owned()),
            ("walltime = \"1s\"", "c.toml:4: limits.walltime: is no known key; did you mean `wall_time`?".to_owned()),
        ] {
            let (_, problems) = read(&format!("[limits]\n{text}\n"));
            assert!(problems.len() == 1 && problems[0].starts_with(&said), "{text}: {problems:?}");
        }
        let (_, problems) = read("[limits]\nwall_time = 90\n");
        assert!(problems[0].contains("write a time in quotes"), "{problems:?}");
    }

    #[test]
    fn console_file_that_would_keep_more_than_may_be_printed_is_refused() {
        let (_, problems) = read("[limits]\nconsole = \"1MiB\"\n[console]\nlimit = \"2MiB\"\n");
        let said = "c.toml:6: console.limit: is 2 MiB, more than the guest may print at all (c.toml:4: limits.console)";
        assert!(problems.len() == 1 && problems[0].starts_with(said), "{problems:?}");
    }
}
