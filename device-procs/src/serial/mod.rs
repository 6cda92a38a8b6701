//! The serial process: a 16550A with its console, and nothing else.
//!
//! Holds the socket to the vmm, the posted-write ring, two eventfds, the console's descriptors and the memory of its
//! recording. Distrusts the guest
//! and the vmm that passes on its register accesses, and takes terminal input as bytes. Whatever they do, it neither
//! panics nor grows; a reader that does not read holds the guest's output up, never this process.

mod escape;
mod output;
mod scan;
pub mod server;
#[cfg(test)]
mod server_tests;
pub mod uart;

use policies::lockdown::{self, LockdownError};
use policies::seccomp::Filter;
use server::{ServeError, Server};
use wire::message::{FromSerial, StartSerial};
use wire::recording::RecordingError;
use wire::ring::RingError;
use wire::{Channel, ChannelError, Text};

/// The most console outputs.
const MAX_OUTPUTS: usize = 4;

/// Why the serial process gave up.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// The start message.
    #[error("the start message is wrong")]
    Start(#[source] ChannelError),
    /// Too many outputs.
    #[error("the start message names {0} outputs of at most {MAX_OUTPUTS}")]
    Outputs(usize),
    /// The ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The recording.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The jail.
    #[error("the jail could not be built")]
    Jail(#[from] LockdownError),
    /// The broker is gone.
    #[error("the broker cannot be told")]
    Tell(#[source] ChannelError),
    /// The event loop.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Runs the serial process on its control channel.
#[must_use]
pub fn run(control: Channel) -> i32 {
    match start(&control).and_then(|mut server| Ok(server.run()?)) {
        Ok(()) => 0,
        Err(error) => {
            let why = chain(&error);
            // Where the broker is gone, the log is all that is left.
            if control.send(&FromSerial::Failed(Text::truncated(&why)), &[]).is_err() {
                lockdown::say(format_args!("{why}"));
            }
            1
        }
    }
}

fn start(control: &Channel) -> Result<Server<'_>, SerialError> {
    let received = control.recv::<StartSerial>().map_err(SerialError::Start)?;
    let start = received.message;
    if start.outputs.len() > MAX_OUTPUTS {
        return Err(SerialError::Outputs(start.outputs.len()));
    }
    let others = [usize::from(start.has_input), start.outputs.len(), usize::from(start.has_recording)];
    let expected = others.into_iter().fold(4_usize, usize::saturating_add);
    let got = received.fds.len();
    if got != expected {
        return Err(SerialError::Start(ChannelError::Fds { got, expected }));
    }
    let audit = start.audit;
    let server = Server::new(control, &start, received.fds)?;
    #[cfg(feature = "hostile")]
    hostile::look();
    let jailed = lockdown::enter(Filter::Serial, audit)?;
    control.send(&FromSerial::Ready(jailed.report), &jailed.fds()).map_err(SerialError::Tell)?;
    #[cfg(feature = "hostile")]
    hostile::enter(hostile::Seat::Serial);
    Ok(server)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
