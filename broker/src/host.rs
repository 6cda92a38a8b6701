//! What this host's kernel has of what the jails are made of, and what falls away where it lacks something.
//!
//! Everything is asked of the kernel itself where it can be asked without changing anything, else read in /proc and /sys.

use crate::report::print_json;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As it should be.
    Good,
    /// Works, with less.
    Weaker,
    /// Does not work.
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Weaker => "weaker",
            Self::Bad => "bad",
        }
    }
}

/// Something that was looked at.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    /// One sentence.
    pub(crate) text: String,
}

/// A finding.
pub(crate) fn finding(name: &'static str, verdict: Verdict, text: impl Into<String>) -> Finding {
    Finding { name, verdict, text: text.into() }
}

/// Prints findings; success when nothing that is needed is missing.
pub(crate) fn tell(findings: &[Finding], as_json: bool) -> ExitCode {
    let good = findings.iter().all(|finding| finding.verdict != Verdict::Bad);
    if as_json {
        let all: Vec<_> =
            findings.iter().map(|f| json!({ "name": f.name, "verdict": f.verdict.word(), "text": f.text })).collect();
        print_json(&json!({ "usable": good, "findings": all }), false);
    } else {
        for finding in findings {
            println!("{:>7}  {:<20} {}", finding.verdict.word(), finding.name, finding.text);
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything that the jails use.
pub(crate) fn features() -> Vec<Finding> {
    let mut all = vec![kernel(), seccomp(), landlock()];
    all.extend(namespaces());
    all.extend([user_namespaces(), mdwe(), memfd(), cgroup(), core_scheduling()]);
    all
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname().map(|name| name.release().display().to_string()).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0_u32));
    match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) {
        (0..=4, _) | (5, 0..=10) => {
            finding("kernel", Verdict::Bad, format!("Linux {release} is too old; 5.11 is the oldest that works."))
        }
        _ => finding("kernel", Verdict::Good, format!("Linux {release} is new enough.")),
    }
}

fn seccomp() -> Finding {
    judge_seccomp(&fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default())
}

fn judge_seccomp(actions: &str) -> Finding {
    let has = |action: &str| actions.split_whitespace().any(|word| word == action);
    match (has("kill_process"), has("user_notif")) {
        (true, true) => finding("seccomp", Verdict::Good, "filters can kill a process and can be audited."),
        (true, false) => finding(
            "seccomp",
            Verdict::Weaker,
            "filters can kill a process, but not ask the broker: --audit needs Linux 5.5.",
        ),
        (false, _) => finding("seccomp", Verdict::Bad, "the kernel has no seccomp filters that kill a process."),
    }
}

fn landlock() -> Finding {
    let weaker = |text: String| finding("landlock", Verdict::Weaker, text);
    match landlock_abi() {
        0 => weaker(
            "this kernel has no Landlock (Linux 5.13, and \"landlock\" among the lsm= words); an empty root, a network \
             namespace of its own and the filters keep a process from files and sockets all the same."
                .to_owned(),
        ),
        abi @ 1..=3 => weaker(format!(
            "the kernel offers Landlock ABI {abi}, which denies files; it denies TCP from 4 on, and abstract sockets and \
             signals from 6 on."
        )),
        abi @ 4..=5 => weaker(format!(
            "the kernel offers Landlock ABI {abi}, which denies files and TCP; it denies abstract sockets and signals \
             from 6 on."
        )),
        abi => finding(
            "landlock",
            Verdict::Good,
            format!("the kernel offers Landlock ABI {abi}, which denies files, TCP, abstract sockets and signals."),
        ),
    }
}

/// landlock_create_ruleset(2) with `LANDLOCK_CREATE_RULESET_VERSION`.
#[allow(unsafe_code, reason = "the version query of Landlock has no safe wrapper")]
fn landlock_abi() -> i64 {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let none: usize = 0;
    // SAFETY: with this flag the kernel takes a null pointer and the size 0, reads nothing, and returns a number.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            none,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    abi.max(0)
}

/// Each kind of namespace that a jail is made of, and what it hides.
const NAMESPACES: [(&str, &str, &str); 7] = [
    ("user", "user namespace", "ids without meaning on the host"),
    ("pid", "pid namespace", "no process but its own to see or signal"),
    ("mnt", "mount namespace", "an empty root"),
    ("net", "network namespace", "no network interface, no abstract socket of the host"),
    ("ipc", "ipc namespace", "no shared memory or queue of the host"),
    ("uts", "uts namespace", "a host name of its own"),
    ("cgroup", "cgroup namespace", "no view of the host's control groups"),
];

fn namespaces() -> impl Iterator<Item = Finding> {
    NAMESPACES.into_iter().map(|(file, name, gives)| {
        if Path::new("/proc/self/ns").join(file).exists() {
            finding(name, Verdict::Good, format!("gives a jailed process {gives}."))
        } else {
            finding(name, Verdict::Bad, format!("the kernel was built without it, and no jail stands without {gives}."))
        }
    })
}

/// Whether this user may make the user namespace that every jail begins with.
fn user_namespaces() -> Finding {
    let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|text| text.trim().to_owned());
    judge_user_namespaces(nix::unistd::geteuid().is_root(), sysctl)
}

fn judge_user_namespaces(root: bool, sysctl: impl Fn(&str) -> Option<String>) -> Finding {
    const NAME: &str = "user namespaces";
    if sysctl("user/max_user_namespaces").as_deref() == Some("0") {
        return finding(NAME, Verdict::Bad, "nobody may make one: `sysctl user.max_user_namespaces=10000` allows it.");
    }
    // Those of Debian's older kernels and of Ubuntu.
    let forbidden = [("kernel/unprivileged_userns_clone", "0"), ("kernel/apparmor_restrict_unprivileged_userns", "1")];
    let found = forbidden.into_iter().find(|(name, value)| sysctl(name).as_deref() == Some(*value));
    match found {
        Some((name, _)) if root => finding(
            NAME,
            Verdict::Good,
            format!("root may make them; ordinary users may not ({}).", name.replace('/', ".")),
        ),
        Some((name, value)) => {
            let allow = if value == "0" { 1 } else { 0 };
            let name = name.replace('/', ".");
            finding(
                NAME,
                Verdict::Bad,
                format!("an ordinary user may make none here: be root, or `sysctl {name}={allow}` as root."),
            )
        }
        None => finding(NAME, Verdict::Good, "ordinary users may make them, so no root is needed."),
    }
}

/// `PR_GET_MDWE` (linux/prctl.h, Linux 6.3).
#[allow(unsafe_code, reason = "nix does not wrap PR_GET_MDWE")]
fn mdwe() -> Finding {
    let none: libc::c_ulong = 0;
    // SAFETY: this prctl takes integers only and changes nothing.
    let answer = unsafe { libc::prctl(libc::PR_GET_MDWE, none, none, none, none) };
    if answer >= 0 {
        return finding("writable code", Verdict::Good, "the kernel refuses memory that is writable and executable.");
    }
    let text = "the kernel does not refuse memory that is writable and executable (PR_SET_MDWE, Linux 6.3); no filter \
                allows to make any all the same.";
    finding("writable code", Verdict::Weaker, text)
}

fn memfd() -> Finding {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    match memfd_create(c"probe", flags) {
        Ok(_) => finding("memfd seals", Verdict::Good, "guest memory can be sealed against being executed."),
        Err(_) => finding(
            "memfd seals",
            Verdict::Weaker,
            "guest memory cannot be sealed against being executed (MFD_NOEXEC_SEAL, Linux 6.3); no filter lets a process \
             execute or map it so all the same.",
        ),
    }
}

/// The control group of version 2 that the broker is in, and what can be used there.
fn cgroup() -> Finding {
    let weaker = |why: String| {
        finding("cgroup v2", Verdict::Weaker, format!("{why}; resource limits of each process (rlimits) stand alone."))
    };
    let Some(folder) = crate::cgroup::own_folder() else {
        return weaker("there is no hierarchy of version 2 here".to_owned());
    };
    let controllers = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let usable: Vec<_> = ["memory", "pids", "cpu"]
        .into_iter()
        .filter(|name| controllers.split_whitespace().any(|c| c == *name))
        .collect();
    if usable.is_empty() {
        return weaker(format!("{} has no controller for memory, pids or cpu", folder.display()));
    }
    if nix::unistd::access(&folder, nix::unistd::AccessFlags::W_OK).is_err() {
        return weaker(format!("{} may not be written by this user", folder.display()));
    }
    let text = format!(
        "groups can be made in {}, with {} where it is the root or the broker is alone in it.",
        folder.display(),
        usable.join(", ")
    );
    finding("cgroup v2", Verdict::Good, text)
}

/// Whether the kernel tells a core scheduling cookie, which changes nothing.
fn core_scheduling() -> Finding {
    match crate::cores::ask() {
        Ok(()) => finding("core scheduling", Verdict::Good, "sibling threads of a core can be kept to one machine."),
        Err(nix::errno::Errno::ENODEV) => {
            finding("core scheduling", Verdict::Good, "no core of this host has sibling threads that could spy.")
        }
        Err(_) => finding(
            "core scheduling",
            Verdict::Weaker,
            "the kernel cannot keep the sibling threads of a core to one machine (CONFIG_SCHED_CORE, Linux 5.14): switch \
             them off where machines must not spy on each other.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seccomp_is_judged_by_its_actions() {
        let verdict = |actions| judge_seccomp(actions).verdict;
        assert_eq!(verdict("kill_process kill_thread trap errno user_notif trace log allow"), Verdict::Good);
        assert_eq!(verdict("kill_process kill_thread trap errno trace log allow"), Verdict::Weaker);
        assert_eq!(verdict("kill trap errno trace allow"), Verdict::Bad);
        assert_eq!(verdict(""), Verdict::Bad);
    }

    #[test]
    fn switch_that_forbids_user_namespaces_is_named() {
        let with =
            |name: &'static str, value: &'static str| move |asked: &str| (asked == name).then(|| value.to_owned());
        let none = judge_user_namespaces(true, with("user/max_user_namespaces", "0"));
        assert_eq!(none.verdict, Verdict::Bad, "{}", none.text);
        let ubuntu = "kernel/apparmor_restrict_unprivileged_userns";
        assert_eq!(judge_user_namespaces(true, with(ubuntu, "1")).verdict, Verdict::Good);
        let user = judge_user_namespaces(false, with(ubuntu, "1"));
        assert_eq!(user.verdict, Verdict::Bad);
        assert!(user.text.contains("sysctl kernel.apparmor_restrict_unprivileged_userns=0"), "{}", user.text);
        let debian = judge_user_namespaces(false, with("kernel/unprivileged_userns_clone", "0"));
        assert!(debian.text.contains("sysctl kernel.unprivileged_userns_clone=1"), "{}", debian.text);
        assert_eq!(judge_user_namespaces(false, with(ubuntu, "0")).verdict, Verdict::Good);
    }

    #[test]
    fn this_kernel_has_what_is_needed() {
        let bad: Vec<_> = features().into_iter().filter(|finding| finding.verdict == Verdict::Bad).collect();
        // Whoever may not make user namespaces cannot run the other tests of jails either.
        assert!(bad.iter().all(|finding| finding.name == "user namespaces"), "{bad:?}");
    }
}
