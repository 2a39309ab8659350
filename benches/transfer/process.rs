//! A process under measurement: its CPU seconds and its memory, and its end with its owner.

use std::fs;
use std::process::{Child, Command};

/// Of `/proc/PID/stat`, on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Ends when it is dropped.
pub struct Process(Child);

impl Process {
    /// Starts `command`.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("it runs"))
    }

    /// The process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// CPU seconds so far, its own and those of the system for it.
    pub fn cpu(&self) -> f64 {
        let stat = self.proc("stat");
        // After the name, which may hold anything, fields 14 and 15 of all are the times.
        let (_, fields) = stat.rsplit_once(')').expect("Linux");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        ticks as f64 / TICKS_PER_SECOND
    }

    /// The most memory it had resident since [`Process::forget_peak`], in bytes.
    pub fn peak(&self) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
        let kib = line.trim().trim_end_matches(" kB");
        kib.parse::<u64>().expect("a number") * 1024
    }

    /// From now on the peak is one of what is to come.
    pub fn forget_peak(&self) {
        // 5 is for that (proc(5)); where it is not allowed the peak is that of all its life.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.0.id()), "5");
    }

    fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).expect("it runs")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
