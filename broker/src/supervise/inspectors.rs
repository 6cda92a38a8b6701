//! The inspectors of a run among what the supervisor waits for: what they find is told as it comes, and nothing waits for it.

use super::Supervisor;
use crate::ends::Reason;
use crate::inspector::{self, Inspection};
use crate::preflight::{Looking, Started};
use crate::report;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};
use wire::Text;
use wire::message::{HostSeen, MachineSeen};
use wire::report::{Finding, Severity};

/// A boot file that was looked at.
#[derive(Debug)]
pub(crate) struct Looked {
    /// The file, for people.
    pub(crate) subject: String,
    /// What was found.
    pub(crate) inspection: Inspection,
    /// Whether it is still to be told: in the middle of the guest's console, nobody could read it, and the guest could hide it.
    held: bool,
}

/// The inspectors of a run.
#[derive(Debug)]
pub(super) struct Inspectors {
    started: Started,
    looked: Vec<Looked>,
    /// What the vmm said of its guest last.
    machine: Option<MachineSeen>,
    /// How often it did.
    times: u8,
    /// How long the machine, which is ready, waits for those that are not in their jails, or not done, yet.
    until: Option<Instant>,
}

/// How long a machine that is ready waits at most for an inspector that is not in its jail yet: many times what it takes on
/// the slowest host. It has read nothing of anybody's then, and has no reason to be late.
const ENTER_LIMIT: Duration = Duration::from_secs(5);

/// How long a guest that is ready waits at most to hear first what its boot files are: what most of them take, and less than
/// a person notices.
const LOOK_LIMIT: Duration = Duration::from_millis(250);

/// How often a vmm tells what it saw: when it is asked, and before it stops.
const TIMES: u8 = 2;

impl Inspectors {
    /// Those that were started with the machine.
    pub(super) fn of(started: Started) -> Self {
        Self { started, looked: Vec::new(), machine: None, times: 0, until: None }
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let preflight = self.started.preflight.iter().map(|looking| &looking.session);
        preflight.chain(&self.started.explainer).flat_map(|session| session.fds())
    }

    /// When to look again at the latest.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let preflight = self.started.preflight.iter().map(|looking| &looking.session);
        preflight.chain(&self.started.explainer).filter_map(|session| session.wake_at()).chain(self.until)
    }

    /// Whether all are in their jails, or over. The machine is ready and waits for nothing else, so that those that keep it
    /// waiting too long are done without.
    pub(super) fn entered(&mut self, now: Instant) -> bool {
        let preflight = self.started.preflight.iter_mut().map(|looking| &mut looking.session);
        let mut late: Vec<_> =
            preflight.chain(&mut self.started.explainer).filter(|session| session.is_entering()).collect();
        if !late.is_empty() {
            let until = *self.until.get_or_insert_with(|| now.checked_add(ENTER_LIMIT).unwrap_or(now));
            if now < until {
                return false;
            }
            late.iter_mut().for_each(|session| session.is_late());
        }
        self.until = None;
        true
    }

    /// Puts those that look at boot files behind the guest, which they would slow down where there is not a processor for each.
    /// Takes the broker's privileges, as they have other ids.
    pub(super) fn step_back(&mut self) {
        self.started.preflight.iter_mut().for_each(|looking| looking.session.step_back());
    }

    /// Lets those read that look at boot files.
    pub(super) fn begin(&mut self) {
        self.started.preflight.iter_mut().for_each(|looking| looking.session.begin(HostSeen::default()));
    }

    /// Whether all boot files were looked at, or the guest, which is ready, has waited long enough for that. It waits where
    /// somebody reads at once what is found, and for what it may write to, which cannot be looked at later.
    pub(super) fn have_looked(&mut self, now: Instant) -> bool {
        let waited_for = |looking: &Looking| looking.is_written_to || report::is_read_at_once();
        if self.started.preflight.iter().any(waited_for) {
            let until = *self.until.get_or_insert_with(|| now.checked_add(LOOK_LIMIT).unwrap_or(now));
            if now < until {
                return false;
            }
        }
        self.until = None;
        true
    }

    /// The guest starts: tells what was found, as long as nobody's console is in between, and gives up what the guest may
    /// write to from now on. What comes later, and what nobody may be reading, is told at the end.
    pub(super) fn guest_starts(&mut self) {
        let all = std::mem::take(&mut self.started.preflight).into_iter();
        let (stale, at_work): (Vec<_>, Vec<_>) = all.partition(|looking| looking.is_written_to);
        self.started.preflight = at_work;
        self.looked
            .extend(stale.into_iter().map(|looking| Looked::new(looking.subject, looking.session.give_up_late())));
        if report::is_read_at_once() {
            self.looked.iter_mut().for_each(Looked::tell);
        }
    }

    /// Takes everything that has happened.
    pub(super) fn turn(&mut self, now: Instant) {
        if let Some(explainer) = &mut self.started.explainer {
            explainer.turn(now);
        }
        self.started.preflight.iter_mut().for_each(|looking| looking.session.turn(now));
        let all = std::mem::take(&mut self.started.preflight).into_iter();
        let (over, at_work): (Vec<_>, Vec<_>) = all.partition(|looking| looking.session.is_over());
        self.started.preflight = at_work;
        let looked = over.into_iter().map(|looking| Looked::new(looking.subject, looking.session.into_inspection()));
        self.looked.extend(looked);
    }

    /// Whether somebody waits to explain a bad end.
    pub(super) fn can_explain(&self) -> bool {
        self.started.explainer.is_some()
    }

    /// Keeps what the vmm said of its guest. False if there cannot be so many vCPUs or disks, or it said so too often.
    pub(super) fn saw(&mut self, machine: MachineSeen) -> bool {
        self.times = self.times.saturating_add(1);
        let is_possible = self.times <= TIMES
            && machine.vcpus.len() <= usize::from(wire::VcpuCount::MAX)
            && machine.disks.len() <= usize::from(wire::DiskCount::MAX);
        if is_possible {
            // What it told when it was asked stands where its threads have nothing to add.
            let before = self.machine.take().unwrap_or_default();
            let vcpus = if machine.vcpus.is_empty() { before.vcpus } else { machine.vcpus };
            self.machine = Some(MachineSeen { vcpus, disks: machine.disks });
        }
        is_possible
    }
}

impl Looked {
    fn new(subject: String, inspection: Inspection) -> Self {
        Self { subject, inspection, held: true }
    }

    /// Tells what was found, once, if anything could fail for it. A disk without a format that is known may be one of data.
    pub(crate) fn tell(&mut self) {
        let Self { subject, inspection, held } = self;
        if !std::mem::take(held) {
            return;
        }
        if let Some(why) = &inspection.cannot_tell {
            let what = format!("{subject} could not be looked at before the boot: {why}");
            // A large image, or a slow host: nothing that anybody has to know.
            if inspection.out_of_time { tracing::info!("{what}") } else { tracing::warn!("{what}") }
        }
        let matters = |finding: &&Finding| finding.severity > Severity::Note && !inspector::is_unrecognised(finding);
        for finding in inspection.findings.iter().filter(matters) {
            let mut lines = inspector::finding_lines(finding).into_iter();
            report::say(&format!("{subject}: {}", lines.next().unwrap_or_default()));
            lines.for_each(|line| report::say(&line));
        }
    }
}

/// Whether the end of a run that has a guest is worth an explanation: not where the guest ended it in order, or the user.
pub(super) fn ended_badly(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::GuestPoweroff
            | Reason::GuestReboot
            | Reason::Finished
            | Reason::UserQuit
            | Reason::Sigint
            | Reason::Sigterm
    )
}

impl Supervisor {
    /// The end of the inspectors: what was found in boot files, and what the console of a run that ended badly means.
    pub(super) fn end_inspectors(&mut self, reason: Reason) -> (Vec<Looked>, Option<Inspection>) {
        let badly = ended_badly(reason);
        let Inspectors { started, mut looked, machine, .. } =
            std::mem::replace(&mut self.inspectors, Inspectors::of(Started::default()));
        // Their time is limited from the launch on. Of a guest that is done in order, nobody waits to hear more.
        for Looking { subject, session, .. } in started.preflight {
            if badly && self.said_running {
                looked.push(Looked::new(subject, session.run(Some(self.signals.as_fd()))));
            } else {
                looked.push(Looked { held: false, ..Looked::new(subject, session.into_inspection()) });
            }
        }
        let explainer = started.explainer.filter(|_| badly && self.said_running);
        let explanation = explainer.map(|mut session| {
            session.must_end_within(inspector::LIMIT);
            session.begin(HostSeen {
                reason: Some(Text::truncated(reason.name())),
                console_bytes: self.console.is_counted.then_some(self.console.received_bytes),
                machine,
            });
            session.run(Some(self.signals.as_fd()))
        });
        (looked, explanation)
    }
}

impl Looked {
    /// The file, and what was found.
    pub(crate) fn json(&self) -> serde_json::Value {
        let mut value = self.inspection.json();
        if let Some(object) = value.as_object_mut() {
            object.insert("file".to_owned(), self.subject.as_str().into());
            object.remove("exit_code");
        }
        value
    }
}
