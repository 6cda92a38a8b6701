//! The loader as a process, in its own lockdown, talked to as the broker does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may fail by a panic")]

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use vmm_core::arch::boot::HERE;
use vmm_core::arch::layout::ram_regions;
use wire::message::{BootFile, Entry, FromLoader, GicVersion, StartLoader, ToLoader};
use wire::{Channel, CommandLine, DiskCount, MemoryBytes, VcpuCount};

const LIMIT: Duration = Duration::from_secs(10);
const MEMORY_BYTES: u64 = 8 << 20;
/// Where the kernel goes in guest memory, as an offset in its file.
const LOAD_OFFSET: u64 = 0x20_0000;
const CODE: [u8; 4] = [0xFA, 0xF4, 0xEB, 0xFD];

fn file(bytes: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create(c"file", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file.into()
}

/// A kernel for this host's architecture with [`CODE`] at [`LOAD_OFFSET`].
fn kernel() -> Vec<u8> {
    if HERE.machine == "arm64" { image() } else { elf() }
}

/// An arm64 Image without an EFI stub.
fn image() -> Vec<u8> {
    let mut file = CODE.to_vec();
    file.resize(8, 0);
    file.extend_from_slice(&LOAD_OFFSET.to_le_bytes());
    file.extend_from_slice(&0x1000_u64.to_le_bytes());
    file.resize(0x38, 0);
    file.extend_from_slice(b"ARM\x64\0\0\0\0");
    file.resize(200, 0);
    file
}

/// An ELF kernel without a PVH note: one segment of 4 bytes.
fn elf() -> Vec<u8> {
    let mut file = b"\x7FELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend_from_slice(&LOAD_OFFSET.to_le_bytes());
    file.extend_from_slice(&64_u64.to_le_bytes());
    file.resize(52, 0);
    file.extend_from_slice(&[64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for field in [120, LOAD_OFFSET, LOAD_OFFSET, 4, 4096, 16] {
        file.extend_from_slice(&field.to_le_bytes());
    }
    file.extend_from_slice(&CODE);
    file
}

struct Loader {
    child: Child,
    channel: Channel,
    memory: OwnedFd,
}

impl Loader {
    fn start(kernel: &[u8], initrd: Option<&[u8]>, has_initrd: bool) -> Self {
        let (channel, theirs) = Channel::pair().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-loader"));
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
        drop(command); // and with it our copy of the other end, or its close would go unseen
        let memory = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&memory, i64::try_from(MEMORY_BYTES).unwrap()).unwrap();
        let start = StartLoader {
            audit: false,
            memory: MemoryBytes::try_from(MEMORY_BYTES).unwrap(),
            vcpus: VcpuCount::try_from(1).unwrap(),
            disks: DiskCount::try_from(1).unwrap(),
            gic: GicVersion::V3,
            has_initrd,
            acpi: true,
            cmdline: CommandLine::try_from("quiet".to_owned()).unwrap(),
        };
        let (kernel, initrd) = (file(kernel), initrd.map(file));
        let mut fds = vec![memory.as_fd(), kernel.as_fd()];
        fds.extend(initrd.as_ref().map(AsFd::as_fd));
        channel.send(&start, &fds).unwrap();
        Self { child, channel, memory }
    }

    fn recv(&self) -> FromLoader {
        self.channel.recv_timeout(LIMIT).unwrap().without_fds().unwrap()
    }

    /// Its answer after `Ready`, and its exit code.
    fn finish(mut self) -> (FromLoader, Option<i32>, OwnedFd) {
        assert!(matches!(self.recv(), FromLoader::Ready(_)));
        self.channel.send(&ToLoader::Load, &[]).unwrap();
        let answer = self.recv();
        (answer, self.child.wait().unwrap().code(), self.memory)
    }
}

#[test]
fn good_kernel_is_loaded_from_inside_the_jail() {
    let (answer, code, memory) = Loader::start(&kernel(), Some(b"070701"), true).finish();
    let FromLoader::Loaded(entry) = answer else { panic!("{answer:?}") };
    let (Entry::X86Long { entry, .. } | Entry::Arm64 { entry, .. }) = entry else { panic!("{entry:?}") };
    let start = ram_regions(MemoryBytes::try_from(MEMORY_BYTES).unwrap())[0].guest_address;
    assert_eq!((entry, code), (start + LOAD_OFFSET, Some(0)));
    let mut bytes = [0; 4];
    nix::sys::uio::pread(&memory, &mut bytes, i64::try_from(LOAD_OFFSET).unwrap()).unwrap();
    assert_eq!(bytes, CODE);
}

#[test]
fn kernel_compressed_with_gzip_is_unpacked_where_the_architecture_has_such_images() {
    // Bytes that do not compress, so that the file is read and unpacked in many pieces.
    let mut kernel = kernel();
    kernel.resize(300, 0);
    let noise = (0..0x10_0000_u32).map(|n| (n.wrapping_mul(0x9E37_79B9).rotate_left(n % 31) >> 13).to_le_bytes()[0]);
    kernel.extend(noise);
    kernel[16..24].copy_from_slice(&0x20_0000_u64.to_le_bytes());
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&kernel).unwrap();
    let (answer, code, memory) = Loader::start(&encoder.finish().unwrap(), None, false).finish();
    assert_eq!(code, Some(0));
    if HERE.machine == "arm64" {
        assert!(matches!(answer, FromLoader::Loaded(Entry::Arm64 { .. })), "{answer:?}");
        let mut bytes = vec![0; kernel.len()];
        nix::sys::uio::pread(&memory, &mut bytes, i64::try_from(LOAD_OFFSET).unwrap()).unwrap();
        assert!(bytes == kernel);
    } else {
        let FromLoader::Refused { file: BootFile::Kernel, why } = answer else { panic!("{answer:?}") };
        assert!(why.to_string().contains("compressed with gzip"), "{why}");
    }
}

#[test]
fn refusal_names_the_file_and_is_no_failure_of_the_loader() {
    let (answer, code, _) = Loader::start(&kernel()[..60], None, false).finish();
    let FromLoader::Refused { file: BootFile::Kernel, why } = answer else { panic!("{answer:?}") };
    assert!(why.to_string().contains("truncated"), "{why}");
    assert_eq!(code, Some(0));
    let (answer, code, _) = Loader::start(&kernel(), Some(b"junk\0"), true).finish();
    assert!(matches!(answer, FromLoader::Refused { file: BootFile::Initrd, .. }), "{answer:?}");
    assert_eq!(code, Some(0));
}

#[test]
fn missing_descriptor_is_a_failure_before_the_jail() {
    let mut loader = Loader::start(&kernel(), None, true);
    assert!(matches!(loader.recv(), FromLoader::Failed(_)));
    assert_eq!(loader.child.wait().unwrap().code(), Some(1));
}
