//! File systems, read by readers of our own that know what a lookup and a read need, and no more.

pub(crate) mod erofs;
pub(crate) mod ext;
pub(crate) mod ext_findings;
pub(crate) mod squashfs;
pub(crate) mod squashfs_metadata;
