//! What Bulkhead's processes say to each other, and how.
//!
//! Every byte that arrives here may come from a captured process: lengths are limited before anything is decoded,
//! leftover bytes, unknown variants and unexpected file descriptors are errors, and values are parsed into types that
//! cannot hold a bad one.

pub mod channel;
pub mod clock;
pub mod message;
pub mod recording;
pub mod report;
pub mod ring;
pub mod value;

pub use channel::{Channel, ChannelError, Received};
pub use value::{CommandLine, CpuList, DiskCount, DiskId, MemoryBytes, SectorCount, Text, VcpuCount};
