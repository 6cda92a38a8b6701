//! The broker: what the command `broker` does.
//!
//! It reads the config, opens every file, builds the jails, hands each process what its row in `docs/ARCHITECTURE.md`
//! names, and supervises. It parses no byte that an attacker controls but the bounded, validated messages and log lines
//! of its children, and it maps no guest memory.

mod arch;
mod cgroup;
mod cli;
mod config;
mod console;
mod cores;
mod device;
mod doctor;
mod ends;
mod files;
mod host;
mod inspector;
mod launch;
mod logs;
mod memory;
mod messages;
mod oom;
mod policy;
mod preflight;
mod privileges;
mod process;
mod report;
mod run;
mod supervise;
mod terminal;
mod timings;

/// The parts that fuzzers drive without starting anything. Not an interface: the broker is a program, and has none but its
/// command line; but what untrusted processes say to it, and what users write for it, has to be tried on its own code.
#[doc(hidden)]
pub mod rehearsal {
    pub use crate::config::rehearsal::check;
    pub use crate::supervise::rehearsal::{Child, Rehearsal, Told};
}

use clap::Parser as _;
use std::process::ExitCode;
use std::time::Instant;
use timings::Timings;

/// The command, with the arguments of this process; returns its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let (started, started_ns) = (Instant::now(), wire::clock::now_ns());
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::refuse(&error),
    };
    if matches!(cli.command, cli::Command::RestoreTerminal) {
        return terminal::guard_main();
    }
    if let Err(error) = logs::init(&cli) {
        eprintln!("broker: {error:#}");
        return ends::Reason::Config.exit_code();
    }
    match &cli.command {
        cli::Command::Run(args) => run::main(&cli, args, started, &Timings::new(started_ns)),
        cli::Command::Check(args) => run::check(args),
        cli::Command::Inspect(args) => inspector::inspect::main(&cli, args),
        cli::Command::Explain(args) => inspector::explain::main(&cli, args),
        cli::Command::Device(args) => device::main(&cli, args, started),
        cli::Command::Doctor(args) => doctor::main(&cli, args),
        cli::Command::Policy(args) => policy::main(args),
        cli::Command::RestoreTerminal => ExitCode::SUCCESS,
    }
}
