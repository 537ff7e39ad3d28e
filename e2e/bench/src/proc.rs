//! What /proc says of the machine's and of processes' use of CPU and memory.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// CPU time of one process, from `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessTicks {
    pub parent: u32,
    /// utime + stime, of all threads.
    pub ticks: u64,
}

/// Reads `/proc/<pid>/stat`. The name in parentheses may itself hold spaces and parentheses.
pub fn parse_process(stat: &str) -> Option<ProcessTicks> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The state is field 3 of proc(5), so field n is at n - 3 here.
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(ProcessTicks {
        parent: u32::try_from(number(4)?).ok()?,
        ticks: number(14)? + number(15)?,
    })
}

/// Busy and total time of all processors, from the first line of `/proc/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineTicks {
    pub busy: u64,
    pub total: u64,
}

/// Reads `/proc/stat`. Waiting for a disk is idle; time that the hypervisor took is busy: it was not ours.
pub fn parse_machine(stat: &str) -> Option<MachineTicks> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    let first: &[u64; 8] = fields.first_chunk()?;
    let total = first.iter().sum();
    Some(MachineTicks {
        busy: total - first[3] - first[4],
        total,
    })
}

/// Resident memory in bytes, from `/proc/<pid>/status`.
pub fn parse_resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_resident(&text).with_context(|| format!("{path} has no VmRSS"))
}

fn process_ticks(pid: u32) -> Option<ProcessTicks> {
    parse_process(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// CPU time of all kernel threads: they work for whoever loads the disk, so they are nobody's share.
fn kernel_ticks() -> u64 {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(process_ticks)
        // kthreadd is process 2, and the parent of all of them.
        .filter(|process| process.parent == 2)
        .map(|process| process.ticks)
        .sum()
}

/// Where the CPU stood at one moment.
#[derive(Clone, Debug)]
pub struct CpuMeter {
    at: Instant,
    machine: MachineTicks,
    kernel: u64,
    own: u64,
    brokers: u64,
    pids: BTreeSet<u32>,
}

/// What was used since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub elapsed: Duration,
    /// Seconds of CPU that the brokers used.
    pub brokers: f64,
    /// Seconds of CPU that the load generator (this process) used.
    pub generator: f64,
    /// Share of the machine that processes of neither used, 0 to 1.
    pub others: f64,
}

impl CpuMeter {
    /// Starts to measure; these processes are the brokers.
    pub fn start(pids: &[u32]) -> Result<Self> {
        // First: reading all of /proc takes milliseconds, which are not the caller's.
        let at = Instant::now();
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self {
            machine: parse_machine(&stat).context("/proc/stat has no line of all processors")?,
            kernel: kernel_ticks(),
            own: process_ticks(std::process::id()).map_or(0, |process| process.ticks),
            brokers: pids
                .iter()
                .filter_map(|pid| process_ticks(*pid))
                .map(|process| process.ticks)
                .sum(),
            pids: pids.iter().copied().collect(),
            at,
        })
    }

    /// What was used from the start until now.
    pub fn usage(&self) -> Result<Usage> {
        let pids: Vec<u32> = self.pids.iter().copied().collect();
        let now = Self::start(&pids)?;
        Ok(between(
            self,
            &now,
            rustix::param::clock_ticks_per_second() as f64,
        ))
    }
}

/// The difference of two moments.
fn between(before: &CpuMeter, after: &CpuMeter, per_second: f64) -> Usage {
    let busy = after.machine.busy.saturating_sub(before.machine.busy);
    let total = after.machine.total.saturating_sub(before.machine.total);
    let own = after.own.saturating_sub(before.own);
    let brokers = after.brokers.saturating_sub(before.brokers);
    let kernel = after.kernel.saturating_sub(before.kernel);
    let others = busy.saturating_sub(own + brokers + kernel);
    Usage {
        elapsed: after.at.duration_since(before.at),
        brokers: brokers as f64 / per_second,
        generator: own as f64 / per_second,
        others: if total == 0 {
            0.0
        } else {
            others as f64 / total as f64
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_with_a_strange_name_is_read() {
        let stat = "4242 (a) b (c) S 17 4242 1 0 -1 4194304 9 0 0 0 300 45 7 8 20 0 12 0 99 1 2";
        assert_eq!(
            parse_process(stat),
            Some(ProcessTicks {
                parent: 17,
                ticks: 345
            })
        );
        assert_eq!(parse_process("4242 (a) S 17"), None);
        assert_eq!(parse_process(""), None);
    }

    #[test]
    fn waiting_for_a_disk_is_idle_and_stolen_time_is_busy() {
        let stat = "cpu  100 1 50 800 40 2 3 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        assert_eq!(
            parse_machine(stat),
            Some(MachineTicks {
                busy: 160,
                total: 1000
            })
        );
        assert_eq!(parse_machine("cpu0 1 2 3"), None);
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        let status = "Name:\tjava\nVmHWM:\t 999 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(parse_resident(status), Some(2 << 20));
        assert_eq!(parse_resident("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn others_are_whoever_is_neither_broker_nor_generator_nor_kernel() {
        let at = Instant::now();
        let moment = |busy, total, kernel, own, brokers, seconds| CpuMeter {
            at: at + Duration::from_secs(seconds),
            machine: MachineTicks { busy, total },
            kernel,
            own,
            brokers,
            pids: BTreeSet::new(),
        };
        let usage = between(
            &moment(1000, 5000, 10, 100, 200, 0),
            &moment(1700, 6000, 60, 300, 500, 5),
            100.0,
        );
        assert_eq!(usage.elapsed, Duration::from_secs(5));
        assert_eq!((usage.brokers, usage.generator), (3.0, 2.0));
        // 700 busy, of which 200 own, 300 of brokers and 50 of the kernel.
        assert!((usage.others - 0.15).abs() < 1e-9);
    }

    #[test]
    fn counters_that_go_backwards_do_not_become_shares() {
        let meter = CpuMeter::start(&[std::process::id()]).unwrap();
        let usage = between(&meter, &meter, 100.0);
        assert_eq!((usage.others, usage.brokers), (0.0, 0.0));
    }

    #[test]
    fn this_process_has_memory_and_burns_cpu() {
        assert!(resident(std::process::id()).unwrap() > 100_000);
        let meter = CpuMeter::start(&[std::process::id()]).unwrap();
        let mut x = 1_u64;
        while meter.at.elapsed() < Duration::from_millis(200) {
            x = std::hint::black_box(x.wrapping_mul(31));
        }
        assert!(meter.usage().unwrap().brokers > 0.02);
    }
}
