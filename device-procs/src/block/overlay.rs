//! The copy-on-write disk of ephemeral mode: what the guest writes goes to a sparse file that ends with the process.
//!
//! Promises that the image is only ever read. Each cluster of the disk is in one of three places; a write of a part of a
//! cluster brings the rest of it over first. Nothing here survives the process, so that no order of writes matters.

use super::buffers::Buffers;
use super::request::Extent;
use super::store::{Store, StoreError, allocate, read_exact, write_exact, write_zeros};
use nix::fcntl::FallocateFlags;

/// The unit of copying: the block size of most file systems, so that most writes bring nothing over.
const CLUSTER_BYTES: u64 = 4096;

/// The largest image of an ephemeral disk: its map then takes 1 GiB, of which only touched pages exist.
pub(super) const MAX_IMAGE_BYTES: u64 = 16 << 40;

/// Where a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the image, never written to.
    Image,
    /// In the overlay file.
    Overlay,
    /// Nowhere: it is all zeros.
    Zero,
}

/// The place of each cluster, two bits each.
#[derive(Debug)]
struct Map {
    words: Vec<u64>,
}

impl Map {
    const PER_WORD: u64 = 32;

    fn new(clusters: u64) -> Option<Self> {
        let words = usize::try_from(clusters.div_ceil(Self::PER_WORD)).ok()?;
        // Zeroed memory of this size comes from the kernel untouched: see MAX_IMAGE_BYTES.
        Some(Self { words: vec![0; words] })
    }

    fn locate(cluster: u64) -> (usize, u64) {
        let word = usize::try_from(cluster / Self::PER_WORD).unwrap_or(usize::MAX);
        (word, (cluster % Self::PER_WORD).saturating_mul(2))
    }

    fn get(&self, cluster: u64) -> Place {
        let (word, shift) = Self::locate(cluster);
        match self.words.get(word).map_or(0, |word| (word >> shift) & 3) {
            0 => Place::Image,
            1 => Place::Overlay,
            _ => Place::Zero,
        }
    }

    fn set(&mut self, clusters: std::ops::Range<u64>, place: Place) {
        let bits = match place {
            Place::Image => 0u64,
            Place::Overlay => 1,
            Place::Zero => 2,
        };
        for cluster in clusters {
            let (word, shift) = Self::locate(cluster);
            if let Some(word) = self.words.get_mut(word) {
                *word = (*word & !(3 << shift)) | (bits << shift);
            }
        }
    }
}

/// An image and what was written over it.
#[derive(Debug)]
pub(super) struct Overlay {
    image: Box<dyn Store>,
    top: Box<dyn Store>,
    capacity_bytes: u64,
    map: Map,
    can_punch: bool,
}

impl Overlay {
    /// An untouched overlay; `None` when the image is larger than [`MAX_IMAGE_BYTES`].
    pub(super) fn new(image: Box<dyn Store>, top: Box<dyn Store>, capacity_bytes: u64) -> Option<Self> {
        if capacity_bytes > MAX_IMAGE_BYTES {
            return None;
        }
        let map = Map::new(capacity_bytes.div_ceil(CLUSTER_BYTES))?;
        Some(Self { image, top, capacity_bytes, map, can_punch: true })
    }

    /// Reads, each run of clusters from its place.
    pub(super) fn read(&self, extent: Extent, mut into: Buffers<'_>) -> Result<(), StoreError> {
        let mut at = extent.start();
        while at < extent.end() {
            let (place, run_end) = self.run(at, extent.end());
            let Some(part) = usize::try_from(run_end.saturating_sub(at)).ok().and_then(|len| into.split_front(len))
            else {
                break;
            };
            match place {
                Place::Image => read_exact(&*self.image, part, at)?,
                Place::Overlay => read_exact(&*self.top, part, at)?,
                Place::Zero => part.fill_zero(),
            }
            at = run_end;
        }
        Ok(())
    }

    /// Writes to the overlay.
    pub(super) fn write(&mut self, extent: Extent, from: Buffers<'_>) -> Result<(), StoreError> {
        if extent.is_empty() {
            return Ok(());
        }
        let (first, last) = (extent.start() / CLUSTER_BYTES, extent.end().saturating_sub(1) / CLUSTER_BYTES);
        for edge in [first, last] {
            if !self.covers(extent, edge) {
                self.bring_over(edge)?;
            }
        }
        write_exact(&*self.top, from, extent.start())?;
        self.map.set(first..last.saturating_add(1), Place::Overlay);
        Ok(())
    }

    /// Makes the range read as zeros and gives its space in the overlay file back.
    pub(super) fn zero(&mut self, extent: Extent) -> Result<(), StoreError> {
        if extent.is_empty() {
            return Ok(());
        }
        let (first, last) = (extent.start() / CLUSTER_BYTES, extent.end().saturating_sub(1) / CLUSTER_BYTES);
        let mut whole = first..last.saturating_add(1);
        if !self.covers(extent, first) {
            self.zero_part(extent, first)?;
            whole.start = whole.start.saturating_add(1);
        }
        if last > first && !self.covers(extent, last) {
            self.zero_part(extent, last)?;
            whole.end = last;
        }
        if whole.is_empty() {
            return Ok(());
        }
        let start = whole.start.saturating_mul(CLUSTER_BYTES);
        let end = whole.end.saturating_mul(CLUSTER_BYTES).min(self.capacity_bytes);
        let len = end.saturating_sub(start);
        self.map.set(whole, Place::Zero);
        if self.can_punch {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // Only a saving: the map says already that the clusters are zero.
            self.can_punch = allocate(&*self.top, flags, start, len).is_ok();
        }
        Ok(())
    }

    /// The place of the cluster at byte `at`, and where the run of clusters in the same place ends, at most at `end`.
    fn run(&self, at: u64, end: u64) -> (Place, u64) {
        let mut cluster = at / CLUSTER_BYTES;
        let place = self.map.get(cluster);
        loop {
            cluster = cluster.saturating_add(1);
            let start = cluster.saturating_mul(CLUSTER_BYTES);
            if start >= end || self.map.get(cluster) != place {
                return (place, start.min(end));
            }
        }
    }

    /// The bytes of a cluster; the last one of a disk may be shorter than the others.
    fn bytes_of(&self, cluster: u64) -> (u64, u64) {
        let start = cluster.saturating_mul(CLUSTER_BYTES);
        (start, start.saturating_add(CLUSTER_BYTES).min(self.capacity_bytes))
    }

    fn covers(&self, extent: Extent, cluster: u64) -> bool {
        let (start, end) = self.bytes_of(cluster);
        extent.start() <= start && end <= extent.end()
    }

    /// Makes sure that a cluster is in the overlay file.
    fn bring_over(&mut self, cluster: u64) -> Result<(), StoreError> {
        let place = self.map.get(cluster);
        if place == Place::Overlay {
            return Ok(());
        }
        let (start, end) = self.bytes_of(cluster);
        let mut bytes = [0u8; 4096];
        let mut all = Buffers::from(&mut bytes[..]);
        let Some(part) = usize::try_from(end.saturating_sub(start)).ok().and_then(|len| all.split_front(len)) else {
            return Ok(());
        };
        let mut copy = Buffers::default();
        part.slices().for_each(|slice| copy.push(*slice));
        if place == Place::Image {
            read_exact(&*self.image, part, start)?;
        }
        write_exact(&*self.top, copy, start)?;
        self.map.set(cluster..cluster.saturating_add(1), Place::Overlay);
        Ok(())
    }

    /// Zeros the part of `extent` that is in `cluster`.
    fn zero_part(&mut self, extent: Extent, cluster: u64) -> Result<(), StoreError> {
        if self.map.get(cluster) == Place::Zero {
            return Ok(());
        }
        self.bring_over(cluster)?;
        let (start, end) = self.bytes_of(cluster);
        let (start, end) = (start.max(extent.start()), end.min(extent.end()));
        write_zeros(&*self.top, start, end.saturating_sub(start))
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::tests::Spy;
    use super::*;
    use nix::errno::Errno;
    use wire::SectorCount;

    /// 2 clusters and a half.
    const SECTORS: u64 = 20;

    fn overlay() -> (Overlay, Spy, Spy) {
        let image = Spy::new(&[1; 512 * 20]);
        let top = Spy::new(&[]);
        let overlay = Overlay::new(Box::new(image.clone()), Box::new(top.clone()), SECTORS * 512).unwrap();
        (overlay, image, top)
    }

    fn extent(sector: u64, sectors: u64) -> Extent {
        Extent::new(sector, sectors * 512, SectorCount::try_from(SECTORS).unwrap()).unwrap()
    }

    fn read(overlay: &Overlay) -> Vec<u8> {
        let mut bytes = vec![9; 512 * 20];
        overlay.read(extent(0, SECTORS), Buffers::from(&mut bytes[..])).unwrap();
        bytes.chunks(512).map(|sector| sector[0] + (sector[511] - sector[0])).collect()
    }

    #[test]
    fn part_of_a_cluster_written_keeps_the_rest_of_it() {
        let (mut overlay, image, _top) = overlay();
        overlay.write(extent(6, 4), Buffers::from(&mut [2; 2048][..])).unwrap();
        assert_eq!(read(&overlay), [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(image.0.writes.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn last_short_cluster_is_written_and_zeroed_whole() {
        let (mut overlay, _image, _top) = overlay();
        overlay.write(extent(16, 4), Buffers::from(&mut [2; 2048][..])).unwrap();
        assert_eq!(read(&overlay)[14..], [1, 1, 2, 2, 2, 2]);
        overlay.zero(extent(16, 4)).unwrap();
        assert_eq!(overlay.map.get(2), Place::Zero);
        assert_eq!(read(&overlay)[14..], [1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn zeroed_clusters_take_no_space_and_can_be_written_again() {
        let (mut overlay, _image, top) = overlay();
        overlay.write(extent(0, 16), Buffers::from(&mut [2; 8192][..])).unwrap();
        overlay.zero(extent(4, 12)).unwrap();
        assert_eq!((overlay.map.get(0), overlay.map.get(1)), (Place::Overlay, Place::Zero));
        assert_eq!(top.0.allocations.load(std::sync::atomic::Ordering::Relaxed), 1);
        overlay.write(extent(9, 1), Buffers::from(&mut [3; 512][..])).unwrap();
        assert_eq!(read(&overlay)[..17], [2, 2, 2, 2, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn range_inside_one_cluster_is_zeroed() {
        let (mut overlay, _image, _top) = overlay();
        overlay.zero(extent(2, 3)).unwrap();
        assert_eq!(read(&overlay)[..8], [1, 1, 0, 0, 0, 1, 1, 1]);
        overlay.zero(extent(3, 3)).unwrap();
        assert_eq!(read(&overlay)[..8], [1, 1, 0, 0, 0, 0, 1, 1]);
    }

    #[test]
    fn failed_write_leaves_the_old_content() {
        let (mut overlay, _image, top) = overlay();
        top.fail(Errno::ENOSPC);
        let write = overlay.write(extent(0, 8), Buffers::from(&mut [2; 4096][..]));
        assert_eq!(write, Err(StoreError::Write { offset: 0, errno: Errno::ENOSPC }));
        assert_eq!(read(&overlay), [1; 20]);
    }

    #[test]
    fn image_beyond_the_map_is_refused() {
        let top = || Box::new(Spy::new(&[]));
        assert!(Overlay::new(top(), top(), MAX_IMAGE_BYTES + 512).is_none());
    }
}
