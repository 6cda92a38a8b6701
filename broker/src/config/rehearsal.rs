//! The config without a host: for fuzzers, which check what must hold of every answer.

use super::{Draft, Host, Problem, check as check_draft, override_with_flags, parse};
use crate::cli::{Cli, Command};
use clap::Parser;
use std::path::Path;

/// Checks a config, as `broker run config.toml` does, and the flags after it, for a host of 8 CPUs; creates nothing.
/// A file that is named is looked for in the folder of `file`.
///
/// # Errors
/// Everything that is wrong, in sentences.
pub fn check(file: &Path, text: &str, flags: &[&str]) -> Result<Facts, Vec<String>> {
    let host = Host { max_vcpus: Some(32), gics: None, count_cpus: || Some(8) };
    let (mut draft, mut problems) = if text.is_empty() { (Draft::default(), Vec::new()) } else { parse(file, text) };
    let arguments = ["broker", "run"].iter().chain(flags);
    match Cli::try_parse_from(arguments).map(|cli| cli.command) {
        Ok(Command::Run(run)) => problems.extend(override_with_flags(&mut draft, &run.machine)),
        Ok(_) => {}
        Err(error) => return Err(vec![error.to_string()]),
    }
    let sentences = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect();
    match check_draft(draft, host) {
        Ok(plan) if problems.is_empty() => Ok(Facts {
            vcpus: plan.vcpus.get(),
            memory_bytes: plan.memory.get(),
            disks: plan.disks.len(),
            disk_count: plan.disk_count.get(),
            cmdline: plan.cmdline.as_str().to_owned(),
            console_files: plan.console.files.len(),
        }),
        Ok(_) => Err(sentences(problems)),
        Err(more) => {
            problems.extend(more);
            Err(sentences(problems))
        }
    }
}

/// What a config that is right comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The number of virtual CPUs.
    pub vcpus: u8,
    /// The size of guest memory in bytes.
    pub memory_bytes: u64,
    /// The number of open images.
    pub disks: usize,
    /// The number of disks that the processes are told of.
    pub disk_count: u8,
    /// The whole command line of the guest's kernel.
    pub cmdline: String,
    /// The number of files that the console is written to.
    pub console_files: usize,
}
