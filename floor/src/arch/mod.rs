//! Selects the architecture.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::run;

/// There is no guest to start: the benchmarks have one for x86_64 alone.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn run(_kernel: &std::path::Path, _words: &str, _memory_mib: usize) -> anyhow::Result<()> {
    anyhow::bail!("the floor starts x86_64 guests only")
}
