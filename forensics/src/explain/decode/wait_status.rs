//! The wait status of a process: how it ended (wait(2); `exitcode` of the panic is one).

use crate::explain::names::Names;

/// Signals: the number, the name, what it means (include/uapi/asm-generic/signal.h).
const SIGNALS: &[(u32, &str, &str)] = &[
    (1, "SIGHUP", "a terminal was hung up"),
    (2, "SIGINT", "interrupted from the keyboard"),
    (3, "SIGQUIT", "quit from the keyboard"),
    (4, "SIGILL", "an instruction that this processor does not have"),
    (5, "SIGTRAP", "a breakpoint instruction"),
    (6, "SIGABRT", "it aborted itself"),
    (7, "SIGBUS", "an access to memory behind which nothing is, as beyond the end of a mapped file"),
    (8, "SIGFPE", "an arithmetic fault, mostly a division by zero"),
    (9, "SIGKILL", "it was killed"),
    (10, "SIGUSR1", "a user's signal"),
    (11, "SIGSEGV", "an access to memory that it does not have"),
    (12, "SIGUSR2", "a user's signal"),
    (13, "SIGPIPE", "it wrote where nobody reads"),
    (14, "SIGALRM", "a timer"),
    (15, "SIGTERM", "it was asked to end"),
    (16, "SIGSTKFLT", "a stack fault"),
    (24, "SIGXCPU", "its processor time is used up"),
    (25, "SIGXFSZ", "a file became too large"),
    (31, "SIGSYS", "a system call that a filter forbids"),
];

/// Binds `signal`, `signal-name`, `signal-meaning` and `core-dumped`, or `exit-status`, of a hexadecimal wait status.
pub(crate) fn bind(status: &str, names: &mut Names) {
    let Ok(status) = u32::from_str_radix(status.trim_start_matches("0x"), 16) else { return };
    let signal = status & 0x7f;
    if signal == 0 {
        names.bind("exit-status", ((status >> 8) & 0xff).to_string());
        return;
    }
    names.bind("signal", signal.to_string());
    if status & 0x80 != 0 {
        names.bind("core-dumped", "yes");
    }
    match SIGNALS.iter().find(|(number, _, _)| *number == signal) {
        Some((_, name, meaning)) => {
            names.bind("signal-name", *name);
            names.bind("signal-meaning", *meaning);
        }
        None => names.bind("signal-name", format!("signal {signal}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(status: &str) -> Names {
        let mut names = Names::default();
        bind(status, &mut names);
        names
    }

    #[test]
    fn wait_status_is_a_signal_or_an_exit_status() {
        assert_eq!(bound("0x00000004").get("signal-name"), Some("SIGILL"));
        assert_eq!(bound("0x0000008b").get("signal-name"), Some("SIGSEGV"));
        assert_eq!(bound("0x0000008b").get("core-dumped"), Some("yes"));
        assert_eq!(bound("0x00007f00").get("exit-status"), Some("127"));
        assert_eq!(bound("0x00000000").get("exit-status"), Some("0"));
        assert_eq!(bound("0x00000026").get("signal-name"), Some("signal 38"));
        assert_eq!(bound("x"), Names::default());
    }
}
