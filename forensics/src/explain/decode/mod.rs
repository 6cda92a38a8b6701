//! Numbers of the kernel and what they mean.

pub(crate) mod arm64;
pub(crate) mod errno;
pub(crate) mod fault;
pub(crate) mod instruction;
pub(crate) mod wait_status;
pub(crate) mod x86;
