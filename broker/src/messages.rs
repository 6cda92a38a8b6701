//! What children say, as events: each child's messages decoded by its own type, with the descriptors that must come.
//!
//! Children are distrusted: a message that is malformed, that its sender may not send, or that brings descriptors which
//! it should not, is an error, and the supervisor ends the run.

use crate::process::Role;
use std::os::fd::OwnedFd;
use wire::message::{
    BootFile, Entry, FromBlock, FromInspector, FromLoader, FromSerial, FromVmm, Lockdown, MachineSeen, StopReason,
};
use wire::report::{Fact, Finding};
use wire::{Channel, ChannelError, Received, Text};

/// What a child said.
#[derive(Debug)]
pub(crate) enum Event {
    /// It is in its jail; with its listeners when auditing.
    Ready(Lockdown, Vec<OwnedFd>),
    /// Guest memory is prepared.
    Loaded(Entry),
    /// A boot file is refused.
    Refused(BootFile, Text),
    /// It failed.
    Failed(Text),
    /// The machine could not be built.
    NotBuilt(Text),
    /// The vCPUs run.
    Running,
    /// The registers of a vCPU, in lines.
    Registers(u8, Vec<Text>),
    /// The guest ended.
    Stopped(StopReason),
    /// The guest wrote its first byte, at this time of the monotonic clock.
    FirstByte(u64),
    /// A panic line on the console.
    Panic(Text),
    /// The console shows a halted system.
    Halted,
    /// Ctrl-A x.
    Leave,
    /// The guest has printed, or written to its disks, as much as it may.
    LimitReached,
    /// Serial is done.
    ConsoleFinished {
        /// Bytes from the guest.
        received_bytes: u64,
        /// Bytes lost at each output.
        dropped_bytes: Vec<u64>,
    },
    /// A disk is done.
    BlockFinished,
    /// The guest broke a disk's protocol.
    Broken(Text),
    /// What the vmm saw of the guest.
    Seen(MachineSeen),
    /// An inspector found that something is so.
    Fact(Fact),
    /// An inspector found something wrong.
    Finding(Finding),
    /// An inspector is done.
    Inspected,
}

/// Takes a message of `role` that is there.
///
/// # Errors
/// When there is none, or when it is not right.
pub(crate) fn next(role: Role, control: &Channel) -> Result<Event, ChannelError> {
    let (event, fds) = match role {
        Role::Loader => {
            let Received { message, fds } = control.try_recv::<FromLoader>()?;
            let event = match message {
                FromLoader::Ready(lockdown) => Event::Ready(lockdown, Vec::new()),
                FromLoader::Loaded(entry) => Event::Loaded(entry),
                FromLoader::Refused { file, why } => Event::Refused(file, why),
                FromLoader::Failed(why) => Event::Failed(why),
            };
            (event, fds)
        }
        Role::Vmm => {
            let Received { message, fds } = control.try_recv::<FromVmm>()?;
            let event = match message {
                FromVmm::Ready(lockdown) => Event::Ready(lockdown, Vec::new()),
                FromVmm::Running => Event::Running,
                FromVmm::Registers { vcpu, lines } => Event::Registers(vcpu, lines),
                FromVmm::Stopped(reason) => Event::Stopped(reason),
                FromVmm::Seen(seen) => Event::Seen(seen),
                FromVmm::NotBuilt(why) => Event::NotBuilt(why),
                FromVmm::Failed(why) => Event::Failed(why),
            };
            (event, fds)
        }
        Role::Serial => {
            let Received { message, fds } = control.try_recv::<FromSerial>()?;
            let event = match message {
                FromSerial::Ready(lockdown) => Event::Ready(lockdown, Vec::new()),
                FromSerial::FirstByte { at_ns } => Event::FirstByte(at_ns),
                FromSerial::Panic(line) => Event::Panic(line),
                FromSerial::Halted => Event::Halted,
                FromSerial::Leave => Event::Leave,
                FromSerial::LimitReached => Event::LimitReached,
                FromSerial::Finished { received_bytes, dropped_bytes } => {
                    Event::ConsoleFinished { received_bytes, dropped_bytes }
                }
                FromSerial::Failed(why) => Event::Failed(why),
            };
            (event, fds)
        }
        Role::Block(_) => {
            let Received { message, fds } = control.try_recv::<FromBlock>()?;
            let event = match message {
                FromBlock::Ready(lockdown) => Event::Ready(lockdown, Vec::new()),
                FromBlock::Broken(why) => Event::Broken(why),
                FromBlock::LimitReached => Event::LimitReached,
                FromBlock::Finished => Event::BlockFinished,
                FromBlock::Failed(why) => Event::Failed(why),
            };
            (event, fds)
        }
        Role::Inspector => {
            let Received { message, fds } = control.try_recv::<FromInspector>()?;
            let event = match message {
                FromInspector::Ready(lockdown) => Event::Ready(lockdown, Vec::new()),
                FromInspector::Fact(fact) => Event::Fact(fact),
                FromInspector::Finding(finding) => Event::Finding(finding),
                FromInspector::Finished => Event::Inspected,
                FromInspector::Failed(why) => Event::Failed(why),
            };
            (event, fds)
        }
    };
    with_fds(event, fds)
}

fn with_fds(event: Event, fds: Vec<OwnedFd>) -> Result<Event, ChannelError> {
    let expected = match &event {
        Event::Ready(lockdown, _) => usize::from(lockdown.listeners),
        _ => 0,
    };
    if fds.len() != expected {
        return Err(ChannelError::Fds { got: fds.len(), expected });
    }
    Ok(match event {
        Event::Ready(lockdown, _) => Event::Ready(lockdown, fds),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const LOCKDOWN: Lockdown = Lockdown {
        landlock_abi: 0,
        mdwe: true,
        listeners: 1,
        times: wire::message::Times { begun_ns: 1, prepared_ns: 2 },
    };

    #[test]
    fn message_of_another_process_is_refused() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&FromBlock::Failed(Text::truncated("x")), &[]).unwrap();
        assert!(next(Role::Block(0), &ours).is_ok());
        theirs.send(&FromSerial::Finished { received_bytes: 1, dropped_bytes: vec![2] }, &[]).unwrap();
        assert!(next(Role::Loader, &ours).is_err());
    }

    #[test]
    fn listeners_must_come_as_announced() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&FromVmm::Ready(LOCKDOWN), &[]).unwrap();
        assert!(matches!(next(Role::Vmm, &ours), Err(ChannelError::Fds { got: 0, expected: 1 })));
        theirs.send(&FromVmm::Ready(LOCKDOWN), &[ours.as_fd()]).unwrap();
        assert!(matches!(next(Role::Vmm, &ours), Ok(Event::Ready(_, fds)) if fds.len() == 1));
    }

    #[test]
    fn descriptors_with_any_other_message_are_refused() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&FromVmm::Running, &[ours.as_fd()]).unwrap();
        assert!(matches!(next(Role::Vmm, &ours), Err(ChannelError::Fds { got: 1, expected: 0 })));
    }
}
