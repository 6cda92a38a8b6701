//! Whether the kernel killed for want of memory: its counters before and after.

use std::fs;

/// The counter at the start of a run.
#[derive(Debug)]
pub(crate) struct OomWatch {
    source: Option<Source>,
    before: u64,
}

#[derive(Debug)]
struct Source {
    path: String,
    key: &'static str,
}

impl OomWatch {
    /// Remembers the counter of our cgroup (any version), or else that of the whole host.
    pub(crate) fn start() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let found = candidates(&own).into_iter().find_map(|source| Some((source.read()?, source)));
        let (before, source) = found.map_or((0, None), |(before, source)| (before, Some(source)));
        Self { source, before }
    }

    /// Whether the counter has grown.
    pub(crate) fn fired(&self) -> bool {
        self.source.as_ref().and_then(Source::read).is_some_and(|now| now > self.before)
    }
}

impl Source {
    fn read(&self) -> Option<u64> {
        count(&fs::read_to_string(&self.path).ok()?, self.key)
    }
}

fn candidates(own: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        if controllers.is_empty() {
            sources.push(Source { path: format!("/sys/fs/cgroup{path}/memory.events"), key: "oom_kill" });
        } else if controllers.split(',').any(|name| name == "memory") {
            sources.push(Source { path: format!("/sys/fs/cgroup/memory{path}/memory.oom_control"), key: "oom_kill" });
        }
    }
    sources.push(Source { path: "/proc/vmstat".to_owned(), key: "oom_kill" });
    sources
}

fn count(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        assert_eq!(count("oom_kill_disable 1\nunder_oom 0\noom_kill 7\n", "oom_kill"), Some(7));
        assert_eq!(count("nothing", "oom_kill"), None);
    }

    #[test]
    fn own_cgroup_comes_before_the_host() {
        let paths: Vec<_> = candidates("4:memory:/a\n0::/b\n").into_iter().map(|source| source.path).collect();
        assert_eq!(
            paths,
            ["/sys/fs/cgroup/memory/a/memory.oom_control", "/sys/fs/cgroup/b/memory.events", "/proc/vmstat"]
        );
    }

    #[test]
    fn quiet_run_has_not_fired() {
        assert!(!OomWatch::start().fired());
    }
}
