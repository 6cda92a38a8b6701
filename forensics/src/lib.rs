//! What is wrong with an image, and what a console log means.
//!
//! Everything here reads untrusted bytes and runs in the jail of the inspector; nothing here opens a file.

pub mod explain;
pub mod inspect;
pub mod process;
pub mod report;
pub mod source;

pub use report::Report;
pub use source::Source;
