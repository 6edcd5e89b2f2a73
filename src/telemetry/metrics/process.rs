//! Figures of the process from `/proc/self`. What cannot be read is left out of the page.

use std::fs;

use crate::telemetry::metrics::declared::{
    Metric, PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RSS, PROCESS_START, PROCESS_THREADS,
    PROCESS_VIRTUAL,
};
use crate::telemetry::metrics::page::Value;

/// Clock ticks in a second as `/proc` counts them; 100 on every Linux architecture that Rust builds for.
const TICKS: f64 = 100.0;

/// The figures that could be read.
pub(super) fn figures() -> Vec<(Metric, Value)> {
    let mut figures = Vec::new();
    let mut add = |metric, value: Option<Value>| figures.extend(value.map(|value| (metric, value)));

    let stat = fs::read_to_string("/proc/self/stat").ok();
    // The second field is the program's name in brackets and may hold anything, brackets included.
    let fields: Vec<&str> = stat
        .as_deref()
        .and_then(|stat| stat.rsplit_once(')'))
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    // proc_pid_stat(5) counts from 1; the first of `fields` is its third.
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / TICKS);
    add(PROCESS_CPU, cpu.map(Value::Float));
    add(PROCESS_THREADS, field(20).map(Value::Whole));
    add(PROCESS_VIRTUAL, field(23).map(Value::Whole));
    let start = field(22).zip(boot_time()).map(|(ticks, boot)| boot as f64 + ticks as f64 / TICKS);
    add(PROCESS_START, start.map(Value::Float));

    add(PROCESS_RSS, resident_bytes().map(Value::Whole));
    // Without the one that reads the directory.
    let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as u64);
    add(PROCESS_OPEN_FDS, open.map(Value::Whole));
    add(PROCESS_MAX_FDS, max_fds());
    figures
}

fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// Resident memory, if it can be told.
pub fn resident_bytes() -> Option<u64> {
    // `status` has it in kB, `stat` in pages of a size that only libc knows.
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn max_fds() -> Option<Value> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Value::Float(f64::INFINITY)),
        number => number.parse().ok().map(Value::Whole),
    }
}
