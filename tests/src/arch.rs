//! What only guests of one architecture have: the one place of this crate with `cfg(target_arch)`.

/// Items for x86_64 only.
#[cfg(target_arch = "x86_64")]
#[macro_export]
macro_rules! on_x86_64 {
    ($($items:item)*) => { $($items)* };
}

/// Items for x86_64 only.
#[cfg(not(target_arch = "x86_64"))]
#[macro_export]
macro_rules! on_x86_64 {
    ($($items:item)*) => {};
}

/// Items for aarch64 only.
#[cfg(target_arch = "aarch64")]
#[macro_export]
macro_rules! on_aarch64 {
    ($($items:item)*) => { $($items)* };
}

/// Items for aarch64 only.
#[cfg(not(target_arch = "aarch64"))]
#[macro_export]
macro_rules! on_aarch64 {
    ($($items:item)*) => {};
}
