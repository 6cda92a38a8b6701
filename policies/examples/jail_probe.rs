//! Stands in for a jailed process in `tests/jail.rs`: locks itself down as it is told, says so, and waits for the end.

use policies::lockdown;
use policies::seccomp::Filter;
use wire::Channel;
use wire::message::{FromBlock, StartBlock};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    lockdown::install_panic_hook();
    let control = Channel::from_stdin();
    let start = control.recv::<StartBlock>()?;
    let mut given = start.fds;
    match start.message.id.as_str() {
        "no-lockdown" => control.send(&FromBlock::Finished, &[])?,
        "extra-fd" => {
            given.push(nix::sys::memfd::memfd_create(c"extra", nix::sys::memfd::MFdFlags::empty())?);
            let jailed = lockdown::enter(Filter::VirtioBlk, start.message.audit)?;
            control.send(&FromBlock::Ready(jailed.report), &jailed.fds())?;
        }
        "violate" => {
            let jailed = lockdown::enter(Filter::VirtioBlk, start.message.audit)?;
            control.send(&FromBlock::Ready(jailed.report), &jailed.fds())?;
            nix::unistd::getppid();
            control.send(&FromBlock::Finished, &[])?;
        }
        _ => {
            let jailed = lockdown::enter(Filter::VirtioBlk, start.message.audit)?;
            control.send(&FromBlock::Ready(jailed.report), &jailed.fds())?;
        }
    }
    // Until the test is done with it.
    if let Err(error) = control.recv::<StartBlock>() {
        drop(given);
        drop(error);
    }
    Ok(())
}
