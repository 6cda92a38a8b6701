//! Compressed streams: which method, and bytes at offsets of what comes out.

mod bzip2;
mod input;
mod lz4;
mod stream;
mod zstd;

pub(crate) use input::Input;
pub(crate) use stream::{End, Unpacked};

use super::limits;
use super::trouble::Trouble;
use std::io::{self, Read};

/// A compression method, recognised as the kernel does it, by the first two bytes (lib/decompress.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lzo,
    Lz4Legacy,
    Zstd,
}

impl Method {
    /// The method of a stream that begins with these bytes.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        Some(match head {
            [0x1f, 0x8b | 0x9e, ..] => Self::Gzip,
            [b'B', b'Z', ..] => Self::Bzip2,
            [0x5d, 0, ..] => Self::Lzma,
            [0xfd, b'7', ..] => Self::Xz,
            [0x89, b'L', ..] => Self::Lzo,
            [0x02, 0x21, ..] => Self::Lz4Legacy,
            [0x28, 0xb5, ..] => Self::Zstd,
            _ => return None,
        })
    }

    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4Legacy => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// How much longer than with the fastest a byte takes to unpack, so that the bound of work is one of time.
    pub(crate) fn weight(self) -> u64 {
        match self {
            Self::Bzip2 => 16,
            Self::Lzma | Self::Xz => 6,
            Self::Gzip | Self::Lzo | Self::Lz4Legacy | Self::Zstd => 1,
        }
    }

    /// The kernel option that lets it unpack an initramfs.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Gzip => "CONFIG_RD_GZIP",
            Self::Bzip2 => "CONFIG_RD_BZIP2",
            Self::Lzma => "CONFIG_RD_LZMA",
            Self::Xz => "CONFIG_RD_XZ",
            Self::Lzo => "CONFIG_RD_LZO",
            Self::Lz4Legacy => "CONFIG_RD_LZ4",
            Self::Zstd => "CONFIG_RD_ZSTD",
        }
    }
}

/// KiB of a limit in bytes.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX)
}

/// A decompressor over `input`, which takes no byte behind the end of the stream.
fn decoder<'a>(method: Method, input: Input<'a>) -> Result<Box<dyn Decoder + 'a>, Trouble> {
    Ok(match method {
        Method::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
        Method::Bzip2 => Box::new(bzip2::Reader::new(input)),
        Method::Lz4Legacy => Box::new(lz4::Reader::new(input)),
        // The dictionary, and half a MiB for everything else.
        Method::Xz => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(input, false, kib(limits::WINDOW_BYTES).saturating_add(512)))
        }
        Method::Lzma => {
            let limit = kib(limits::WINDOW_BYTES).saturating_add(512);
            Box::new(lzma_rust2::LzmaReader::new_mem_limit(input, limit, None).map_err(Trouble::corrupt)?)
        }
        Method::Zstd => Box::new(zstd::Reader::new(input).map_err(Trouble::corrupt)?),
        Method::Lzo => return Err(Trouble::Unsupported("lzo is not read by this program".into())),
    })
}

/// A decompressor that says how far it read.
trait Decoder: Read {
    /// The bytes that were taken of the input.
    fn taken(&self) -> u64;
}

impl Decoder for flate2::bufread::GzDecoder<Input<'_>> {
    fn taken(&self) -> u64 {
        self.get_ref().taken()
    }
}

impl Decoder for bzip2::Reader<'_> {
    fn taken(&self) -> u64 {
        self.input().taken()
    }
}

impl Decoder for lz4::Reader<'_> {
    fn taken(&self) -> u64 {
        lz4::Reader::taken(self)
    }
}

impl Decoder for lzma_rust2::XzReader<Input<'_>> {
    fn taken(&self) -> u64 {
        self.inner().taken()
    }
}

impl Decoder for lzma_rust2::LzmaReader<Input<'_>> {
    fn taken(&self) -> u64 {
        self.inner().taken()
    }
}

impl Decoder for zstd::Reader<'_> {
    fn taken(&self) -> u64 {
        self.input().taken()
    }
}

/// Unpacks one block into `output`, as file systems have them; returns its length.
pub(crate) fn block(method: Method, packed: &[u8], output: &mut [u8]) -> Result<usize, Trouble> {
    match method {
        Method::Gzip => fill(&mut flate2::read::ZlibDecoder::new(packed), output),
        Method::Lz4Legacy => lz4_flex::block::decompress_into(packed, output).map_err(Trouble::corrupt),
        Method::Xz => {
            let limit = kib(limits::WINDOW_BYTES).saturating_add(512);
            fill(&mut lzma_rust2::XzReader::new_mem_limit(packed, false, limit), output)
        }
        Method::Lzma => {
            let limit = kib(limits::WINDOW_BYTES).saturating_add(512);
            let reader = lzma_rust2::LzmaReader::new_mem_limit(packed, limit, None);
            fill(&mut reader.map_err(Trouble::corrupt)?, output)
        }
        Method::Zstd => {
            let window = limits::ZSTD_WINDOW_BYTES;
            let reader = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(packed, window);
            fill(&mut reader.map_err(Trouble::corrupt)?, output)
        }
        Method::Bzip2 | Method::Lzo => Err(Trouble::Unsupported(format!("{} is not read here", method.name()))),
    }
}

fn fill(reader: &mut dyn Read, output: &mut [u8]) -> Result<usize, Trouble> {
    let mut done = 0;
    while let Some(rest) = output.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Trouble::corrupt(error)),
        }
    }
    Ok(done)
}
