//! `broker policy`: what the system call filters allow, in words, and what this host's kernel has of what the jails use.

use crate::cli::{PolicyArgs, PolicyCheckArgs, PolicyShowArgs, PolicyTask};
use crate::host;
use crate::report::print_json;
use policies::rules::{Arch, Mark, ThreadPolicy, policies};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::process::ExitCode;

/// `broker policy`.
pub(crate) fn main(args: &PolicyArgs) -> ExitCode {
    match &args.task {
        PolicyTask::Show(args) => show(args),
        PolicyTask::Check(args) => check(args),
    }
}

fn show(args: &PolicyShowArgs) -> ExitCode {
    let arch = args.arch.map_or_else(Arch::native, Into::into);
    let wanted = args.process.map(policies::Process::from);
    let chosen = policies(arch).iter().filter(|policy| wanted.is_none_or(|process| policy.process == process));
    if args.json {
        let filters: Vec<_> = chosen.map(in_json).collect();
        print_json(&json!({ "architecture": arch.name(), "filters": filters }), false);
    } else {
        let texts: Vec<_> = chosen.map(in_words).collect();
        print!("{}", texts.join("\n"));
    }
    ExitCode::SUCCESS
}

fn check(args: &PolicyCheckArgs) -> ExitCode {
    host::tell(&host::features(), args.json)
}

fn in_words(policy: &ThreadPolicy) -> String {
    let count = policy.syscalls().len();
    let mut text = format!(
        "{}, thread {}: {count} system calls; any other, or one of these with other arguments, kills the process\n",
        policy.process.name(),
        policy.thread
    );
    for rule in policy.rules {
        // Writing to a string cannot fail.
        writeln!(text, "  {rule}\n      {}", rule.why).unwrap_or(());
    }
    text
}

fn in_json(policy: &ThreadPolicy) -> Value {
    let rules: Vec<_> = policy
        .rules
        .iter()
        .map(|rule| {
            let conditions: Vec<_> = rule.when.iter().map(ToString::to_string).collect();
            let untested = match rule.mark {
                Mark::None => None,
                Mark::Unexercised(why) | Mark::Lab(why) | Mark::Sometimes(why) => Some(why),
            };
            json!({ "syscall": rule.syscall, "when": conditions, "why": rule.why, "not_always_tested": untested })
        })
        .collect();
    json!({ "process": policy.process.name(), "thread": policy.thread, "system_calls": policy.syscalls().len(),
            "otherwise": "kill-process", "rules": rules })
}

#[cfg(test)]
mod tests {
    use super::*;
    use policies::Process;

    #[test]
    fn filter_is_told_with_its_count_conditions_and_reasons() {
        let vcpu = policies(Arch::X86_64).iter().find(|policy| policy.thread == "vcpu").unwrap();
        let text = in_words(vcpu);
        assert!(text.starts_with(&format!("vmm, thread vcpu: {} system calls;", vcpu.syscalls().len())), "{text}");
        assert!(
            text.contains("\n  ioctl when argument 2 is KVM_RUN (0xae80)\n      KVM_RUN: enter the guest\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1 + 2 * vcpu.rules.len());
    }

    #[test]
    fn filter_in_json_has_every_rule() {
        for policy in Arch::ALL.into_iter().flat_map(policies) {
            let json = in_json(policy);
            let rules = json["rules"].as_array().unwrap();
            assert_eq!(rules.len(), policy.rules.len());
            assert!(rules.iter().all(|rule| rule["why"].as_str().is_some_and(|why| !why.is_empty())));
        }
        assert!(policies(Arch::Aarch64).iter().any(|policy| policy.process == Process::Loader));
    }
}
