//! Runs a program on another stage: `stage [without-kvm] [user=ID] [cgroup=FOLDER] [no-namespaces] -- program arguments…`,
//! or with `first-process` alone before the `--`, as the first process of a pid namespace.
//!
//! Everything is done in a mount namespace of its own; the host's files stay as they are.

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, stat};
use nix::unistd::{Gid, Uid, chown, setgroups, setresgid, setresuid};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A place that each Linux system has, covered only here.
const PLACE: &str = "/proc/driver";
const NODE: &str = "/proc/driver/kvm";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (stage, program) = match arguments.iter().position(|word| word == "--") {
        Some(at) => (arguments.iter().take(at), arguments.iter().skip(at.saturating_add(1))),
        None => bail!("no -- before the program"),
    };
    let none: Option<&str> = None;
    if arguments.first().is_some_and(|word| word == "first-process") {
        // Only a process that is made from now on is in the new namespace; it goes on where this one stops.
        unshare(CloneFlags::CLONE_NEWPID).context("no pid namespace")?;
        let own = std::env::current_exe().context("this program has no path")?;
        let mut rest: Vec<_> = arguments.iter().skip(1).map(String::as_str).collect();
        rest.insert(0, "proc");
        let status = Command::new(own).args(rest).status().context("the first process does not start")?;
        std::process::exit(status.code().unwrap_or(1));
    }
    unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("mounts stay shared")?;
    let mut user = None;
    for word in stage {
        match word.split_once('=') {
            None if word == "without-kvm" => {
                // All of /dev, as a node cannot be covered by nothing.
                mount(Some("none"), "/dev", Some("tmpfs"), MsFlags::empty(), none).context("/dev stays")?;
            }
            None if word == "no-namespaces" => {
                // The limit of this namespace holds for all below it, and is its own root's to set (namespaces(7)).
                unshare(CloneFlags::CLONE_NEWUSER).context("no user namespace")?;
                std::fs::write("/proc/self/uid_map", "0 0 1").context("the user is not mapped")?;
                std::fs::write("/proc/self/setgroups", "deny").context("groups are not given up")?;
                std::fs::write("/proc/self/gid_map", "0 0 1").context("the group is not mapped")?;
                std::fs::write("/proc/sys/user/max_user_namespaces", "0").context("the limit stays")?;
            }
            None if word == "proc" => {
                mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("no /proc of its own")?;
            }
            Some(("user", id)) => user = Some(id.parse::<u32>().context("no user id")?),
            Some(("cgroup", folder)) => {
                std::fs::write(format!("{folder}/cgroup.procs"), "0").context("the cgroup cannot be entered")?;
            }
            _ => bail!("unknown stage {word}"),
        }
    }
    if let Some(id) = user {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        // A node of the user's own group, as the host's is of the group kvm.
        let device = stat("/dev/kvm").context("no /dev/kvm")?.st_rdev;
        mount(Some("none"), PLACE, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .context("no place for a node")?;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP | Mode::S_IWGRP;
        mknod(NODE, SFlag::S_IFCHR, mode, makedev(nix::sys::stat::major(device), nix::sys::stat::minor(device)))
            .context("no node")?;
        std::fs::set_permissions(NODE, std::fs::Permissions::from_mode(0o660)).context("the node is closed")?;
        chown(NODE, None, Some(gid)).context("the node has another group")?;
        mount(Some(NODE), "/dev/kvm", none, MsFlags::MS_BIND, none).context("/dev/kvm stays")?;
        setgroups(&[]).context("the groups stay")?;
        setresgid(gid, gid, gid).context("the group stays")?;
        setresuid(uid, uid, uid).context("the user stays")?;
    }
    let mut program = program;
    let mut command = Command::new(program.next().context("no program")?);
    Err(command.args(program).exec()).context("the program cannot be run")
}
