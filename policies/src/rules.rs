//! The policies as they are written, for whoever shows them or holds them against what is used: the text of
//! `policies/seccomp`, of all architectures, in the program itself. What is enforced is compiled from the same text.

use crate::Process;
use std::fmt;

/// An architecture that there are policies for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// x86_64.
    X86_64,
    /// aarch64.
    Aarch64,
}

/// What one thread of a process may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadPolicy {
    /// The process.
    pub process: Process,
    /// The thread: that of the policy's file.
    pub thread: &'static str,
    /// What is allowed.
    pub rules: &'static [Rule],
}

/// A system call that is allowed, perhaps only with some arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The name of the system call.
    pub syscall: &'static str,
    /// What it is needed for.
    pub why: &'static str,
    /// Whether the tests make it.
    pub mark: Mark,
    /// All of these must hold.
    pub when: &'static [Condition],
}

/// Whether the tests make a call, with the reason where not all of them do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// They do.
    None,
    /// None does.
    Unexercised(&'static str),
    /// Only those with Linux guests do.
    Lab(&'static str),
    /// It depends on the host or on chance.
    Sometimes(&'static str),
}

/// A condition on the low 32 bits of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// The argument, from 0.
    pub arg: usize,
    /// What must hold.
    pub test: Test,
    /// What the value is.
    pub means: &'static str,
}

/// What must hold for the low 32 bits of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// This value.
    Is(u32),
    /// None of these bits.
    Without(u32),
}

include!(concat!(env!("OUT_DIR"), "/rules.rs"));

impl Arch {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// That of this program.
    #[must_use]
    pub fn native() -> Self {
        if std::env::consts::ARCH == "aarch64" { Self::Aarch64 } else { Self::X86_64 }
    }

    /// The name of its folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

/// The policies of an architecture.
#[must_use]
pub fn policies(arch: Arch) -> &'static [ThreadPolicy] {
    match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    }
}

impl ThreadPolicy {
    /// The system calls, each once, in the order of the file.
    #[must_use]
    pub fn syscalls(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for rule in self.rules {
            if !names.contains(&rule.syscall) {
                names.push(rule.syscall);
            }
        }
        names
    }
}

impl Rule {
    /// Whether it allows a call; of each argument, the low 32 bits.
    #[must_use]
    pub fn allows(&self, syscall: &str, args: &[u32; 6]) -> bool {
        let holds = |condition: &Condition| {
            args.get(condition.arg).is_some_and(|&value| match condition.test {
                Test::Is(wanted) => value == wanted,
                Test::Without(mask) => value & mask == 0,
            })
        };
        self.syscall == syscall && self.when.iter().all(holds)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.syscall)?;
        for (index, condition) in self.when.iter().enumerate() {
            write!(f, " {} {condition}", if index == 0 { "when" } else { "and" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.arg.saturating_add(1);
        match self.test {
            Test::Is(value) => write!(f, "argument {number} is {} ({value:#x})", self.means),
            Test::Without(mask) => write!(f, "argument {number} has not {} ({mask:#x})", self.means),
        }
    }
}

/// The name of a system call of this architecture, or its number where the name is not known.
#[must_use]
pub fn syscall_name(number: i64) -> String {
    let sysno = usize::try_from(number).ok().and_then(syscalls::Sysno::new);
    match sysno.map(|sysno| sysno.name()) {
        // The one name in which the table of arm64 differs from the kernel's (include/uapi/asm-generic/unistd.h).
        Some("fstatat") => "newfstatat".to_owned(),
        Some(name) => name.to_owned(),
        None => format!("syscall#{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most system calls of each thread.
    const MOST: [(Process, &str, usize); 7] = [
        (Process::Loader, "main", 12),
        (Process::Vmm, "control", 17),
        (Process::Vmm, "vcpu", 12),
        (Process::Serial, "main", 12),
        (Process::VirtioBlk, "main", 15),
        (Process::VirtioBlk, "uring", 14),
        (Process::Inspector, "main", 10),
    ];

    #[test]
    fn every_policy_keeps_to_its_number_of_system_calls() {
        for arch in Arch::ALL {
            let all = policies(arch);
            assert_eq!(all.len(), MOST.len(), "{arch:?}");
            for (process, thread, most) in MOST {
                let policy = all.iter().find(|policy| (policy.process, policy.thread) == (process, thread)).unwrap();
                let count = policy.syscalls().len();
                assert!(count <= most, "{arch:?} {} {thread}: {count} of {most}", process.name());
            }
        }
    }

    #[test]
    fn no_policy_opens_connects_or_starts_anything() {
        let never = [
            "open",
            "openat",
            "openat2",
            "socket",
            "connect",
            "clone",
            "clone3",
            "fork",
            "vfork",
            "execve",
            "execveat",
            "io_uring_setup",
            "ptrace",
            "prctl",
            "seccomp",
            "bpf",
            "mprotect",
            "kill",
        ];
        for policy in Arch::ALL.into_iter().flat_map(policies) {
            let found = policy.syscalls().into_iter().find(|name| never.contains(name));
            assert_eq!(found, None, "{} {}", policy.process.name(), policy.thread);
        }
    }

    #[test]
    fn memory_is_never_made_executable_or_ones_own() {
        for policy in Arch::ALL.into_iter().flat_map(policies) {
            for rule in policy.rules.iter().filter(|rule| rule.syscall == "mmap") {
                let [shared, anonymous] = [0x4001, 0x4021];
                assert!(rule.allows("mmap", &[0, 4096, 0x3, shared, 0, 0]), "{}", policy.process.name());
                assert!(!rule.allows("mmap", &[0, 4096, 0x7, shared, 0, 0]), "{}", policy.process.name());
                assert!(!rule.allows("mmap", &[0, 4096, 0x3, anonymous, 0, 0]), "{}", policy.process.name());
            }
        }
    }

    #[test]
    fn rule_is_told_in_words() {
        let vcpu = policies(Arch::X86_64).iter().find(|policy| policy.thread == "vcpu").unwrap();
        let run = vcpu.rules.iter().find(|rule| rule.allows("ioctl", &[9, 0xae80, 0, 0, 0, 0])).unwrap();
        assert_eq!(run.to_string(), "ioctl when argument 2 is KVM_RUN (0xae80)");
        let condition = Condition { arg: 2, test: Test::Without(4), means: "PROT_EXEC" };
        assert_eq!(condition.to_string(), "argument 3 has not PROT_EXEC (0x4)");
    }
}
