//! The broker's own cgroup: where it is, and how its children get controllers.
//!
//! Only the root of the hierarchy may have processes and limited children both (Control Group v2, "No Internal Process
//! Constraint"). In any other one, a broker that is alone goes into a leaf of its own first; where others are, it is left
//! as it is. The kernel would not always refuse: with pids or cpu, it would make it a threaded one, of no use to children.

use super::{CgroupError, PREFIX};
use std::fs;
use std::path::{Path, PathBuf};

/// The broker's cgroup.
#[derive(Debug)]
pub(super) struct Place(PathBuf);

/// A cgroup for the broker alone. Dropping it takes the broker back to where it was, and takes its parent's controllers
/// from it, which had none.
#[derive(Debug)]
pub(super) struct Leaf {
    parent: PathBuf,
    folder: PathBuf,
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|error| CgroupError::File(path.to_owned(), error))
}

fn write(path: PathBuf, text: &str) -> Result<(), CgroupError> {
    fs::write(&path, text).map_err(|error| CgroupError::File(path, error))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

impl Place {
    /// Of the calling process.
    pub(super) fn own() -> Result<Self, CgroupError> {
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let own = read(Path::new("/proc/self/cgroup"))?;
        find(&mounts, &own).map(Self).ok_or(CgroupError::NotMounted)
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// Gives children the `controller`.
    pub(super) fn enable(&self, controller: &'static str, leaf: &mut Option<Leaf>) -> Result<(), CgroupError> {
        let control = self.0.join("cgroup.subtree_control");
        if words(&read(&control)?).any(|name| name == controller) {
            return Ok(());
        }
        if !words(&read(&self.0.join("cgroup.controllers"))?).any(|name| name == controller) {
            return Err(CgroupError::NoController { folder: self.0.clone(), controller });
        }
        // The root has no type.
        if leaf.is_none() && self.0.join("cgroup.type").exists() {
            *leaf = Some(Leaf::enter(&self.0)?);
        }
        write(control, &format!("+{controller}"))
    }
}

impl Leaf {
    fn enter(parent: &Path) -> Result<Self, CgroupError> {
        let own = std::process::id().to_string();
        if !read(&parent.join("cgroup.procs"))?.lines().all(|line| line == own) {
            return Err(CgroupError::Shared(parent.to_owned()));
        }
        let folder = parent.join(format!("{PREFIX}{own}-broker"));
        fs::create_dir(&folder).map_err(|error| CgroupError::File(folder.clone(), error))?;
        let leaf = Self { parent: parent.to_owned(), folder };
        write(leaf.folder.join("cgroup.procs"), "0")?;
        Ok(leaf)
    }

    /// The one that a broker has gone into.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        Some(Self { parent: folder.parent()?.to_owned(), folder: folder.to_owned() })
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes the calling process back, and removes it.
    pub(super) fn leave(&self) -> Result<(), CgroupError> {
        let control = self.parent.join("cgroup.subtree_control");
        let off: Vec<_> = words(&read(&control)?).map(|name| format!("-{name}")).collect();
        write(control, &off.join(" "))?;
        write(self.parent.join("cgroup.procs"), "0")?;
        fs::remove_dir(&self.folder).map_err(|error| CgroupError::File(self.folder.clone(), error))
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if self.folder.exists()
            && let Err(error) = self.leave()
        {
            tracing::warn!("the broker's own cgroup could not be removed: {:#}", anyhow::Error::from(error));
        }
    }
}

/// The folder of the cgroup in `own` (/proc/self/cgroup), by `mounts` (/proc/self/mountinfo; both cgroups(7)).
pub(super) fn find(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        if rest.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // What is mounted may be a part of the hierarchy only.
        let below = Path::new(own).strip_prefix(root).ok()?;
        let climbs = below.components().any(|part| part == std::path::Component::ParentDir);
        (!climbs && !point.contains('\\')).then(|| Path::new(point).join(below))
    })
}
