//! Holds the system calls that jailed processes were seen to make against their policies: which rule was used how often,
//! which was not, and which call no rule allows.
//!
//! A line of a trace is `process thread syscall arg0 … arg5 count`; an argument is hexadecimal, or `_` where no rule
//! looks at it. A line that is not so is an error, never skipped.

use crate::rules::{Mark, Rule, ThreadPolicy};
use std::fmt;

/// Why a trace says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// A tracer failed.
    #[error("a tracer failed: {0}")]
    Tracer(String),
    /// A line is none of a trace.
    #[error("{0:?} is no line of a trace")]
    Line(String),
}

/// System calls that were alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The process.
    pub process: String,
    /// The thread, by its name in the policy.
    pub thread: String,
    /// The system call.
    pub syscall: String,
    /// The low 32 bits of its arguments; 0 where no rule looks.
    pub args: [u32; 6],
    /// How many there were.
    pub count: u64,
}

/// What was run while the calls were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only guests of ours.
    Small,
    /// Linux guests as well.
    Linux,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Nothing used it, and no mark says why it stays.
    Surplus,
    /// Its mark says that nothing uses it, and something did.
    StaleMark,
}

/// A rule and its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleUse {
    /// The rule.
    pub rule: &'static Rule,
    /// How many calls it allowed.
    pub count: u64,
    /// What is wrong with it.
    pub finding: Option<Finding>,
}

/// A filter and its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadUse {
    /// The policy.
    pub policy: ThreadPolicy,
    /// Its rules, in order.
    pub rules: Vec<RuleUse>,
}

/// All filters and their use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The filters.
    pub threads: Vec<ThreadUse>,
    /// Calls that no rule allows.
    pub missing: Vec<Call>,
}

/// Reads a trace.
///
/// # Errors
/// When a tracer says that it failed, or a line is none.
pub fn parse(text: &str) -> Result<Vec<Call>, UsageError> {
    text.lines().map(line).collect()
}

fn line(text: &str) -> Result<Call, UsageError> {
    if let Some(why) = text.strip_prefix("error ") {
        return Err(UsageError::Tracer(why.to_owned()));
    }
    let wrong = || UsageError::Line(text.to_owned());
    let words: Vec<_> = text.split(' ').collect();
    let &[process, thread, syscall, a, b, c, d, e, f, count] = words.as_slice() else { return Err(wrong()) };
    let mut args = [0; 6];
    for (arg, word) in args.iter_mut().zip([a, b, c, d, e, f]) {
        if word != "_" {
            let digits = word.strip_prefix("0x").ok_or_else(wrong)?;
            *arg = u32::from_str_radix(digits, 16).map_err(|_no_number| wrong())?;
        }
    }
    let count = count.parse().map_err(|_no_number| wrong())?;
    let [process, thread, syscall] = [process, thread, syscall].map(str::to_owned);
    Ok(Call { process, thread, syscall, args, count })
}

impl Usage {
    /// Holds `calls` against `policies`.
    #[must_use]
    pub fn new(policies: &[ThreadPolicy], calls: &[Call], scope: Scope) -> Self {
        let of =
            |policy: &ThreadPolicy, call: &Call| policy.process.name() == call.process && policy.thread == call.thread;
        let threads = policies.iter().map(|&policy| {
            let own: Vec<_> = calls.iter().filter(|call| of(&policy, call)).collect();
            let rules = policy.rules.iter().map(|rule| {
                let allowed = own.iter().filter(|call| rule.allows(&call.syscall, &call.args));
                let count = allowed.fold(0_u64, |sum, call| sum.saturating_add(call.count));
                RuleUse { rule, count, finding: finding(rule.mark, count, scope) }
            });
            ThreadUse { policy, rules: rules.collect() }
        });
        let allowed = |call: &Call| {
            let mut rules = policies.iter().filter(|policy| of(policy, call)).flat_map(|policy| policy.rules);
            rules.any(|rule| rule.allows(&call.syscall, &call.args))
        };
        let threads = threads.collect();
        Self { threads, missing: calls.iter().filter(|call| !allowed(call)).cloned().collect() }
    }

    /// Whether every rule is used or marked, no mark is stale, and no call is missing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let mut rules = self.threads.iter().flat_map(|thread| &thread.rules);
        self.missing.is_empty() && rules.all(|rule| rule.finding.is_none())
    }

    /// What is wrong, a sentence for each thing.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for thread in &self.threads {
            let name = format!("{} {}", thread.policy.process.name(), thread.policy.thread);
            for used in &thread.rules {
                match used.finding {
                    Some(Finding::Surplus) => problems.push(format!(
                        "surplus: {name} may call {} but no test does: remove the rule, or mark it with the reason",
                        used.rule
                    )),
                    Some(Finding::StaleMark) => problems.push(format!(
                        "stale mark: {name} called {} {} times, which its mark denies: remove the mark",
                        used.rule, used.count
                    )),
                    None => {}
                }
            }
        }
        problems.extend(self.missing.iter().map(|call| format!("missing: {call}, which no rule allows")));
        problems
    }
}

fn finding(mark: Mark, count: u64, scope: Scope) -> Option<Finding> {
    match (mark, count) {
        (Mark::None, 0) => Some(Finding::Surplus),
        (Mark::Lab(_), 0) if scope == Scope::Linux => Some(Finding::Surplus),
        (Mark::Unexercised(_), 1..) => Some(Finding::StaleMark),
        (Mark::Lab(_), 1..) if scope == Scope::Small => Some(Finding::StaleMark),
        _ => None,
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args: Vec<_> = self.args.iter().map(|arg| format!("{arg:#x}")).collect();
        write!(f, "{} {} called {}({}) {} times", self.process, self.thread, self.syscall, args.join(", "), self.count)
    }
}

/// A table for people.
impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ThreadUse { policy, rules } in &self.threads {
            let calls = policy.syscalls().len();
            writeln!(f, "{} {}: {calls} system calls", policy.process.name(), policy.thread)?;
            for used in rules {
                write!(f, "{:>12}  {}", used.count, used.rule)?;
                match used.rule.mark {
                    Mark::None => writeln!(f)?,
                    Mark::Unexercised(why) => writeln!(f, "  [unexercised: {why}]")?,
                    Mark::Lab(why) => writeln!(f, "  [Linux guests only: {why}]")?,
                    Mark::Sometimes(why) => writeln!(f, "  [not in every run: {why}]")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Process;
    use crate::rules::{Condition, Test};

    /// As a tracer wrote them down of a machine with one disk.
    const RECORDED: &str = "\
serial main poll _ _ _ _ _ _ 1651
serial main write _ _ _ _ _ _ 15294
vmm vcpu ioctl _ 0xae80 _ _ _ _ 220116
vmm vcpu ioctl _ 0x4138ae84 _ _ _ _ 57
";

    const fn rule(syscall: &'static str, mark: Mark, when: &'static [Condition]) -> Rule {
        Rule { syscall, why: "a test", mark, when }
    }

    const RUN: &[Condition] = &[Condition { arg: 1, test: Test::Is(0xae80), means: "KVM_RUN" }];
    const SREGS: &[Condition] = &[Condition { arg: 1, test: Test::Is(0x4138_ae84), means: "KVM_SET_SREGS" }];

    fn policies(serial: &'static [Rule], vcpu: &'static [Rule]) -> [ThreadPolicy; 2] {
        [
            ThreadPolicy { process: Process::Serial, thread: "main", rules: serial },
            ThreadPolicy { process: Process::Vmm, thread: "vcpu", rules: vcpu },
        ]
    }

    const SERIAL: &[Rule] = &[rule("poll", Mark::None, &[]), rule("write", Mark::None, &[])];
    const VCPU: &[Rule] = &[rule("ioctl", Mark::None, RUN), rule("ioctl", Mark::None, SREGS)];

    fn problems(serial: &'static [Rule], vcpu: &'static [Rule], scope: Scope) -> Vec<String> {
        let usage = Usage::new(&policies(serial, vcpu), &parse(RECORDED).unwrap(), scope);
        assert_eq!(usage.is_clean(), usage.problems().is_empty());
        usage.problems()
    }

    #[test]
    fn recorded_lines_are_read() {
        let calls = parse(RECORDED).unwrap();
        assert_eq!(calls.len(), 4);
        assert_eq!((calls[2].syscall.as_str(), calls[2].args[1], calls[2].count), ("ioctl", 0xae80, 220_116));
        assert_eq!(calls[0].args, [0; 6]);
    }

    #[test]
    fn line_that_is_none_is_an_error() {
        for text in
            ["", "vmm vcpu", "vmm vcpu read 1 _ _ _ _ _ 5", "vmm vcpu read 0xg _ _ _ _ _ 5", "a b c _ _ _ _ _ _ x"]
        {
            assert_eq!(parse(&format!("{text}\n")), Err(UsageError::Line(text.to_owned())));
        }
        assert_eq!(parse("error EPERM"), Err(UsageError::Tracer("EPERM".to_owned())));
    }

    #[test]
    fn policy_that_is_used_whole_has_no_problem() {
        assert_eq!(problems(SERIAL, VCPU, Scope::Small), [""; 0]);
    }

    #[test]
    fn removed_rule_is_missing_and_added_one_surplus() {
        const LESS: &[Rule] = &[rule("ioctl", Mark::None, RUN)];
        let missing = problems(SERIAL, LESS, Scope::Small);
        let [missing] = missing.as_slice() else { panic!("{missing:?}") };
        assert!(missing.starts_with("missing: vmm vcpu called ioctl(0x0, 0x4138ae84,"), "{missing}");
        const MORE: &[Rule] =
            &[rule("poll", Mark::None, &[]), rule("write", Mark::None, &[]), rule("openat", Mark::None, &[])];
        let surplus = problems(MORE, VCPU, Scope::Linux);
        let [surplus] = surplus.as_slice() else { panic!("{surplus:?}") };
        assert!(surplus.starts_with("surplus: serial main may call openat but"), "{surplus}");
    }

    #[test]
    fn unused_rule_with_a_mark_is_no_surplus() {
        const MARKED: &[Rule] = &[
            rule("poll", Mark::None, &[]),
            rule("write", Mark::Sometimes("chance"), &[]),
            rule("exit_group", Mark::Unexercised("a panic"), &[]),
        ];
        assert_eq!(problems(MARKED, VCPU, Scope::Linux), [""; 0]);
    }

    #[test]
    fn mark_that_a_call_refutes_is_stale() {
        const MARKED: &[Rule] = &[rule("poll", Mark::Unexercised("never"), &[]), rule("write", Mark::None, &[])];
        assert!(problems(MARKED, VCPU, Scope::Linux)[0].starts_with("stale mark: serial main called poll 1651 times"));
    }

    #[test]
    fn rule_of_linux_guests_is_asked_for_only_when_they_ran() {
        const UNUSED: &[Rule] = &[
            rule("poll", Mark::None, &[]),
            rule("write", Mark::None, &[]),
            rule("clock_gettime", Mark::Lab("Linux guests"), &[]),
        ];
        assert_eq!(problems(UNUSED, VCPU, Scope::Small), [""; 0]);
        assert!(problems(UNUSED, VCPU, Scope::Linux)[0].starts_with("surplus: serial main may call clock_gettime"));
        const USED: &[Rule] = &[rule("poll", Mark::Lab("Linux guests"), &[]), rule("write", Mark::None, &[])];
        assert_eq!(problems(USED, VCPU, Scope::Linux), [""; 0]);
        assert!(problems(USED, VCPU, Scope::Small)[0].starts_with("stale mark:"));
    }

    #[test]
    fn call_of_a_thread_without_a_policy_is_missing() {
        let calls = parse("vmm unknown read _ _ _ _ _ _ 1").unwrap();
        assert_eq!(Usage::new(&policies(SERIAL, VCPU), &calls, Scope::Small).missing, calls);
    }
}
