//! Which of several causes is the reason of an end, and what it says.

use super::*;

fn judge(causes: Vec<Cause>) -> End {
    Evidence { causes, device_names: vec!["serial".into(), "virtio-blk-0".into()], ..Evidence::default() }.judge()
}

fn died(name: &str, exit: Exit) -> Cause {
    Cause::Died { name: name.into(), exit }
}

fn panicked(stop: StopReason) -> End {
    Evidence {
        causes: vec![Cause::Stopped(stop)],
        panic: Some(Text::truncated("Kernel panic - x")),
        ..Evidence::default()
    }
    .judge()
}

#[test]
fn codes_are_distinct() {
    let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), Reason::ALL.len());
}

#[test]
fn guest_that_ends_by_itself_has_its_own_reason() {
    for (stop, reason) in [
        (StopReason::PowerOff, Reason::GuestPoweroff),
        (StopReason::Reset, Reason::GuestReboot),
        (StopReason::Halted, Reason::GuestHalted),
        (StopReason::TripleFault, Reason::TripleFault),
        (StopReason::KvmError(Text::truncated("x")), Reason::KvmError),
    ] {
        assert_eq!(judge(vec![Cause::Stopped(stop)]).reason, reason);
    }
}

#[test]
fn reset_after_a_panic_line_is_a_panic_with_that_line() {
    for stop in [StopReason::Reset, StopReason::Halted, StopReason::TripleFault] {
        let end = panicked(stop);
        assert_eq!(end.reason, Reason::GuestPanic);
        assert!(end.message.ends_with("Kernel panic - x"));
    }
}

#[test]
fn poweroff_after_a_forged_panic_line_is_a_poweroff() {
    assert_eq!(panicked(StopReason::PowerOff).reason, Reason::GuestPoweroff);
}

#[test]
fn signal_that_came_first_wins_over_what_follows() {
    assert_eq!(judge(vec![Cause::Signal(Signal::SIGINT), died("vmm", Exit::Signal(9))]).reason, Reason::Sigint);
    assert_eq!(judge(vec![Cause::Signal(Signal::SIGHUP)]).reason, Reason::Sigterm);
    assert_eq!(judge(vec![Cause::UserQuit]).reason, Reason::UserQuit);
}

#[test]
fn death_that_came_before_a_signal_wins() {
    let end = judge(vec![died("vmm", Exit::Signal(11)), Cause::Signal(Signal::SIGINT)]);
    assert_eq!(end.reason, Reason::ProcessDied);
    assert!(end.message.contains("the vmm process was killed by SIGSEGV"), "{}", end.message);
}

#[test]
fn seccomp_violation_names_the_process_whatever_others_say() {
    let stopped = Cause::Stopped(StopReason::DeviceFailed { device: 1, why: Text::truncated("gone") });
    let end = judge(vec![stopped, died("serial", Exit::Code(1)), died("virtio-blk-0", Exit::Signal(libc::SIGSYS))]);
    assert_eq!(end.reason, Reason::SeccompViolation);
    assert!(end.message.contains("the virtio-blk-0 process"));
}

#[test]
fn device_that_died_is_named_before_what_the_vmm_says_of_it() {
    let stopped = Cause::Stopped(StopReason::DeviceFailed { device: 1, why: Text::truncated("gone") });
    let end = judge(vec![stopped.clone(), died("virtio-blk-0", Exit::Signal(9))]);
    assert_eq!(end.reason, Reason::ProcessDied);
    let end = judge(vec![stopped]);
    assert_eq!((end.reason, end.message.contains("virtio-blk-0")), (Reason::DeviceFailed, true));
}

#[test]
fn kill_while_the_kernel_lacked_memory_is_out_of_memory() {
    let causes = vec![died("vmm", Exit::Signal(9))];
    assert_eq!(
        Evidence { causes: causes.clone(), oom: true, ..Evidence::default() }.judge().reason,
        Reason::OutOfMemory
    );
    assert_eq!(Evidence { causes, ..Evidence::default() }.judge().reason, Reason::ProcessDied);
}

#[test]
fn refusals_before_the_guest_runs_have_their_own_reasons() {
    let refused = Cause::Refused { file: BootFile::Initrd, path: "i.img".into(), why: Text::truncated("cut off") };
    let end = judge(vec![refused]);
    assert_eq!((end.reason, end.message.as_str()), (Reason::BootRefused, "the initrd i.img cannot be booted: cut off"));
    assert_eq!(judge(vec![Cause::Jail { name: "vmm".into(), why: "x".into() }]).reason, Reason::JailFailed);
    assert_eq!(judge(vec![Cause::Kvm(Text::truncated("x"))]).reason, Reason::KvmError);
    assert_eq!(judge(vec![Cause::Host("x".into())]).reason, Reason::HostError);
    assert_eq!(judge(vec![Cause::Failed { name: "serial".into(), why: "x".into() }]).reason, Reason::DeviceFailed);
}

#[test]
fn device_that_ran_alone_and_finished_is_a_success() {
    assert_eq!(judge(vec![Cause::Finished]).reason.code(), 0);
}

#[test]
fn no_cause_at_all_is_an_error() {
    assert_eq!(judge(vec![]).reason, Reason::HostError);
}

#[test]
fn each_limit_has_its_own_reason_and_names_its_key() {
    for (limit, reason, key) in [
        (Limit::WallTime(Duration::from_secs(90)), Reason::LimitWallTime, "90 s, its limit (limits.wall_time)"),
        (
            Limit::CpuTime(Duration::from_secs(60)),
            Reason::LimitCpuTime,
            "1 m of CPU time, their limit (limits.cpu_time)",
        ),
        (Limit::Console(1 << 20), Reason::LimitConsole, "more than 1 MiB (limits.console)"),
        (Limit::DiskWrites(3 << 30), Reason::LimitDiskWrites, "more than 3 GiB to its disks (limits.disk_writes)"),
    ] {
        let end = judge(vec![Cause::Limit(limit)]);
        assert_eq!(end.reason, reason);
        assert!(end.message.contains(key), "{}", end.message);
    }
}

#[test]
fn measured_limit_wins_over_the_kernels_kill_and_loses_to_a_broken_policy() {
    let limit = || Cause::Limit(Limit::CpuTime(Duration::from_secs(1)));
    let killed = || died("vmm", Exit::Signal(libc::SIGKILL));
    assert_eq!(judge(vec![killed(), limit()]).reason, Reason::LimitCpuTime);
    assert_eq!(judge(vec![died("vmm", Exit::Signal(libc::SIGSYS)), limit()]).reason, Reason::SeccompViolation);
    assert_eq!(judge(vec![Cause::Signal(Signal::SIGTERM), limit()]).reason, Reason::Sigterm);
}

#[test]
fn limit_that_a_process_tells_of_does_not_hide_its_death() {
    let told = Cause::Limit(Limit::Console(1));
    assert_eq!(judge(vec![told, died("serial", Exit::Signal(libc::SIGSEGV))]).reason, Reason::ProcessDied);
}

#[test]
fn kill_for_want_of_memory_is_the_limits_only_if_that_was_reached() {
    let evidence = |memory_limit, oom| Evidence {
        causes: vec![died("vmm", Exit::Signal(libc::SIGKILL))],
        memory_limit,
        oom,
        ..Evidence::default()
    };
    let end = evidence(Some(64 << 20), true).judge();
    assert_eq!(end.reason, Reason::LimitMemory);
    assert!(end.message.contains("used 64 MiB beyond the guest's memory (limits.memory)"), "{}", end.message);
    assert_eq!(evidence(None, true).judge().reason, Reason::OutOfMemory);
    assert_eq!(evidence(None, false).judge().reason, Reason::ProcessDied);
}
