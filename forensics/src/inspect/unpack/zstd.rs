//! One frame of zstd, within bounds: the decoder keeps as much as the window says, before it gives anything.

use super::input::Input;
use crate::inspect::bytes::u8_at;
use crate::inspect::limits::{ZSTD_KEPT_BYTES, ZSTD_WINDOW_BYTES, ZSTD_WINDOW_MAX};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};

/// A decoder of one frame.
pub(crate) struct Reader<'a> {
    input: Input<'a>,
    decoder: FrameDecoder,
    /// The window is so large that all must be kept.
    keeps_all: bool,
}

/// Whether the header of a frame asks for a window that is larger than may be (RFC 8878, 3.1.1.1).
fn is_large(header: &[u8]) -> bool {
    let descriptor = u8_at(header, 4);
    // With one segment, the window is the content: it is bounded as one that is too large.
    let one_segment = descriptor & 0x20 != 0;
    let window = 1_u64 << (u32::from(u8_at(header, 5) >> 3).saturating_add(10));
    let window = window.saturating_add(window / 8 * u64::from(u8_at(header, 5) & 7));
    one_segment || window > ZSTD_WINDOW_BYTES
}

impl<'a> Reader<'a> {
    pub(crate) fn new(mut input: Input<'a>) -> io::Result<Self> {
        let keeps_all = is_large(input.fill_buf()?);
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW_MAX);
        decoder.init(&mut input).map_err(io::Error::other)?;
        Ok(Self { input, decoder, keeps_all })
    }

    pub(crate) fn input(&self) -> &Input<'a> {
        &self.input
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
            let most = usize::try_from(ZSTD_KEPT_BYTES).unwrap_or_default();
            let step = if self.keeps_all {
                BlockDecodingStrategy::UptoBytes(most)
            } else {
                BlockDecodingStrategy::UptoBlocks(1)
            };
            self.decoder.decode_blocks(&mut self.input, step).map_err(io::Error::other)?;
            if self.keeps_all && !self.decoder.is_finished() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
        }
        self.decoder.read(buffer)
    }
}
