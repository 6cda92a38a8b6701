//! The device processes' library: one module for each device.

pub mod block;
pub mod serial;
