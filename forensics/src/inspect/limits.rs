//! How much is looked at, whatever the image asks for; and the counters that keep it so.

use super::trouble::Trouble;
use std::cell::Cell;

/// The most bytes that one compressed stream may unpack to before it is left. A decompression bomb costs this.
pub const STREAM_BYTES: u64 = 1 << 30;
/// The most bytes that are read or unpacked in one inspection, all streams and repetitions together; a byte of a slow method
/// counts as several.
pub const WORK_BYTES: u64 = 3 << 30;
/// The most entries of an archive that are kept, at 32 bytes each.
pub const ARCHIVE_ENTRIES: u64 = 1_500_000;
/// The most bytes of small files that are kept of a packed archive, so that it need not be unpacked again for each.
pub const KEPT_FILE_BYTES: usize = 20 << 20;
/// The largest file that is kept so.
pub const KEPT_FILE_MAX: u64 = 4 << 20;
/// The most bytes of symbolic links that are kept.
pub const KEPT_LINK_BYTES: usize = 4 << 20;
/// How often a packed stream is unpacked anew from its beginning.
pub const REWINDS: u64 = 24;
/// The most bytes of one directory that are read while a name is looked for.
pub const DIRECTORY_BYTES: u64 = 256 << 20;
/// The most names of one directory that are kept, where a directory is listed.
pub const LISTED_NAMES: usize = 64;
/// The longest chain of symbolic links (MAXSYMLINKS of Linux).
pub const SYMLINKS: u32 = 40;
/// The longest path or target of a link in bytes (PATH_MAX of Linux).
pub const PATH_BYTES: usize = 4096;
/// The most partitions of a disk that are looked at.
pub const PARTITIONS: usize = 128;
/// The most parts of an initramfs that are looked at.
pub const INITRAMFS_PARTS: usize = 32;
/// The most shared libraries that are looked for.
pub const LIBRARIES: usize = 64;
/// The most folders of a RUNPATH, with those that are handed on to it, that are looked into.
pub const RUN_PATH_FOLDERS: usize = 64;
/// The most bytes of a program that are looked at for pages of zeros.
pub const SCANNED_BYTES: u64 = 64 << 20;
/// The most bytes of code in which jumps are followed from an entry.
pub const CODE_BYTES: usize = 4 << 20;
/// The most instructions that are decoded there.
pub const INSTRUCTIONS: usize = 400_000;
/// The largest dictionary or window of a compressed stream.
pub const WINDOW_BYTES: u64 = 64 << 20;
/// The window of a zstd stream up to which it may unpack to any size.
pub const ZSTD_WINDOW_BYTES: u64 = 32 << 20;
/// With a larger window the decoder keeps all that it unpacks, up to twice as much in memory: so it may be no more than this.
pub const ZSTD_KEPT_BYTES: u64 = 62 << 20;
/// The largest window of a zstd stream, which kernels are packed with.
pub const ZSTD_WINDOW_MAX: u64 = 128 << 20;

/// The most components of paths that are looked up in a tree once it is read.
pub const PATH_STEPS: u64 = 1 << 20;

/// What a component of a path costs where an entry is unpacked behind links.
const COMPONENT_COST: u64 = 64;
/// What each read costs beside its bytes, so that many small ones are bounded as well.
const READ_COST: u64 = 256;

/// What an inspection has cost so far, and what it may cost.
#[derive(Debug)]
pub struct Work {
    most: u64,
    cost: Cell<u64>,
    read: Cell<u64>,
    unpacked: Cell<u64>,
    entries: Cell<u64>,
    rewinds: Cell<u64>,
    path_steps: Cell<u64>,
}

impl Default for Work {
    fn default() -> Self {
        Self::limited(WORK_BYTES)
    }
}

impl Work {
    /// As usual, but with fewer bytes than [`WORK_BYTES`].
    #[must_use]
    pub fn limited(most: u64) -> Self {
        let zero = || Cell::new(0);
        Self {
            most,
            cost: zero(),
            read: zero(),
            unpacked: zero(),
            entries: zero(),
            rewinds: zero(),
            path_steps: zero(),
        }
    }

    /// The most bytes that one stream may unpack to.
    pub(super) fn stream_bytes(&self) -> u64 {
        STREAM_BYTES.min(self.most / 2)
    }

    /// Bytes read of the source.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read.get()
    }

    /// Bytes that came out of decompressors.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.unpacked.get()
    }

    /// Entries of archives.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries.get()
    }

    /// Counts a read.
    pub(super) fn read(&self, bytes: usize) -> Result<(), Trouble> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.read.set(self.read.get().saturating_add(bytes));
        self.cost(bytes.saturating_add(READ_COST))
    }

    /// Counts bytes unpacked.
    pub(super) fn unpack(&self, bytes: usize) -> Result<(), Trouble> {
        self.unpack_by(1, bytes)
    }

    /// Counts bytes unpacked by a method that is so many times slower than the fastest.
    pub(super) fn unpack_by(&self, weight: u64, bytes: usize) -> Result<(), Trouble> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.unpacked.set(self.unpacked.get().saturating_add(bytes));
        self.cost(bytes.saturating_mul(weight))
    }

    /// Counts a step over so many bytes that are in memory already.
    pub(super) fn step(&self, bytes: usize) -> Result<(), Trouble> {
        self.cost(u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(16))
    }

    fn cost(&self, bytes: u64) -> Result<(), Trouble> {
        self.cost.set(self.cost.get().saturating_add(bytes));
        if self.cost.get() > self.most {
            return Err(Trouble::Bound("as much as may be was read and unpacked"));
        }
        Ok(())
    }

    /// Counts an entry.
    pub(super) fn entry(&self) -> Result<(), Trouble> {
        self.entries.set(self.entries.get().saturating_add(1));
        if self.entries.get() > ARCHIVE_ENTRIES {
            return Err(Trouble::Bound("an archive has more than 1,500,000 entries"));
        }
        Ok(())
    }

    /// Counts components of the path of an entry, or of the links that it goes through.
    pub(super) fn components(&self, count: usize) -> Result<(), Trouble> {
        self.cost(u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(COMPONENT_COST))
    }

    /// Counts components of a path that is looked up. What was kept can be looked up even if nothing more may be read.
    pub(super) fn path_steps(&self, count: usize) -> Result<(), Trouble> {
        self.path_steps.set(self.path_steps.get().saturating_add(u64::try_from(count).unwrap_or(u64::MAX)));
        if self.path_steps.get() > PATH_STEPS {
            return Err(Trouble::Bound("paths in it have more components than are followed"));
        }
        Ok(())
    }

    /// Counts a stream that is unpacked anew.
    pub(super) fn rewind(&self) -> Result<(), Trouble> {
        self.rewinds.set(self.rewinds.get().saturating_add(1));
        if self.rewinds.get() > REWINDS {
            return Err(Trouble::Bound("a packed archive was unpacked 24 times"));
        }
        Ok(())
    }
}
