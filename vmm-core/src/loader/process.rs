//! The life of the loader process, from its first message to its only answer.

use super::entropy::{Entropy, EntropyError};
use super::image::{Image, ImageError};
use super::{Machine, chain};
use crate::arch::boot;
use crate::memory::{self, MemoryError};
use policies::lockdown::{self, LockdownError};
use policies::seccomp::Filter;
use wire::message::{FromLoader, StartLoader, ToLoader};
use wire::{Channel, ChannelError, Received};

/// Why the loader could not do its work; the host or the broker is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The control channel failed.
    #[error("the loader's control channel failed")]
    Channel(#[from] ChannelError),
    /// Guest memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A boot file cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There are no random numbers for the guest.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The jail could not be finished.
    #[error(transparent)]
    Lockdown(#[from] LockdownError),
}

/// Loads a guest as the broker says, and answers. The result says whether the loader did its work, be it a refusal.
#[must_use]
pub fn run(channel: &Channel) -> bool {
    let answer = match load(channel) {
        Ok(answer) => answer,
        Err(error) => FromLoader::Failed(chain(&error)),
    };
    let done = !matches!(answer, FromLoader::Failed(_));
    // Without a broker there is nobody to tell.
    channel.send(&answer, &[]).is_ok() && done
}

fn load(channel: &Channel) -> Result<FromLoader, ProcessError> {
    let received = channel.recv::<StartLoader>()?;
    let has_initrd = received.message.has_initrd;
    let (start, memory, kernel, initrd) = if has_initrd {
        let (start, [memory, kernel, initrd]) = received.with_fds()?;
        (start, memory, kernel, Some(initrd))
    } else {
        let (start, [memory, kernel]) = received.with_fds()?;
        (start, memory, kernel, None)
    };
    let memory = memory::map(memory, start.memory)?;
    let kernel = Image::new(kernel)?;
    let initrd = initrd.map(Image::new).transpose()?;
    let entropy = Entropy::gather()?;

    #[cfg(feature = "hostile")]
    hostile::look();
    let jailed = lockdown::enter(Filter::Loader, start.audit)?;
    channel.send(&FromLoader::Ready(jailed.report), &jailed.fds())?;
    drop(jailed);
    // No byte of a boot file is read before the broker has looked at the jail from outside.
    let ToLoader::Load = channel.recv().and_then(Received::without_fds)?;
    #[cfg(feature = "hostile")]
    hostile::enter(hostile::Seat::Loader);

    let machine = Machine {
        memory: start.memory,
        vcpus: start.vcpus,
        disks: start.disks,
        acpi: start.acpi,
        gic: start.gic,
        cmdline: start.cmdline,
        entropy,
    };
    Ok(boot::load(&memory, &kernel, initrd.as_ref(), &machine).map_or_else(FromLoader::from, FromLoader::Loaded))
}
