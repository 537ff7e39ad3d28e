//! Consumer groups whose coordinator ends.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use palisade_e2e::tools::{Access, Cluster, Java, Kcat, Lease, tool, wait_until};

use super::{PATIENCE, create};

const GROUP: &str = "going-on";
const TOPIC: &str = "gone-on";

/// A group as Kafka's own tool shows it, and what it has to read.
struct Watched<'a> {
    java: Lease,
    admin: &'a Access,
    kcat: Kcat,
    produced: u64,
}

/// The fields of the lines that speak of the group.
fn rows(shown: &str) -> impl Iterator<Item = Vec<&str>> {
    shown
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.first() == Some(&GROUP))
}

impl Watched<'_> {
    fn describe(&mut self, what: &str) -> Result<String> {
        let arguments = ["--describe", "--group", GROUP, what, "--timeout", "30000"];
        let outcome = self
            .java
            .tool(tool::CONSUMER_GROUPS, self.admin, &arguments)?;
        Ok(outcome.success()?.stdout)
    }

    /// The broker that coordinates the group, when it is stable.
    fn coordinator(&mut self) -> Result<usize> {
        let shown = self.describe("--state")?;
        let row = rows(&shown).next().context("no such group")?;
        ensure!(row.contains(&"Stable"), "{shown}");
        row.iter()
            .find_map(|field| field.strip_prefix('(')?.strip_suffix(')')?.parse().ok())
            .with_context(|| format!("no coordinator in\n{shown}"))
    }

    /// The ids of the group's members. Who had to join as somebody new has another.
    fn members(&mut self) -> Result<BTreeSet<String>> {
        let members = self.assigned()?;
        Ok(members.into_iter().map(|(id, _)| id).collect())
    }

    /// The ids of the group's members, and how many partitions each has.
    fn assigned(&mut self) -> Result<Vec<(String, usize)>> {
        let shown = wait_until("the members are shown", PATIENCE, || {
            self.describe("--members")
        })?;
        rows(&shown)
            .map(|row| {
                let [_, id, _, _, partitions, ..] = row[..] else {
                    bail!("{shown}");
                };
                Ok((id.to_owned(), partitions.parse()?))
            })
            .collect()
    }

    /// Produces records, and waits until the group has read and committed everything.
    fn reads_on(&mut self) -> Result<()> {
        // With keys, so that every partition gets some.
        let lines: String = (0..300).map(|n| format!("key-{n}:{n}\n")).collect();
        self.kcat.produce(TOPIC, &lines, &["-K", ":"])?.success()?;
        self.produced += 300;
        wait_until("everything is read and committed", PATIENCE, || {
            let shown = self.describe("--offsets")?;
            let mut committed = 0;
            for row in rows(&shown) {
                let [_, _, _, current, _, lag, ..] = row[..] else {
                    bail!("{shown}");
                };
                ensure!(["0", "-"].contains(&lag), "{shown}");
                committed += current.parse::<u64>().unwrap_or(0);
            }
            let produced = self.produced;
            ensure!(committed == produced, "{committed} of {produced}\n{shown}");
            Ok(())
        })
    }

    /// The members are the same at another coordinator than the one that is gone, and go on.
    fn goes_on_without(&mut self, gone: usize, members: &BTreeSet<String>) -> Result<()> {
        wait_until("another broker coordinates the group", PATIENCE, || {
            let now = self.coordinator()?;
            ensure!(now != gone, "still {now}");
            Ok(())
        })?;
        for _ in 0..2 {
            let now = self.members()?;
            ensure!(now == *members, "{members:?} became {now:?}");
            self.reads_on()?;
        }
        let now = self.members()?;
        ensure!(now == *members, "{members:?} became {now:?} later");
        Ok(())
    }
}

/// Its members, of librdkafka and of Kafka's own client, go on in their generation when its coordinator stops, and when the next one is killed.
#[test]
fn a_group_survives_the_end_of_its_coordinator() -> Result<()> {
    let mut cluster = Cluster::start(3)?;
    let admin = cluster.admin()?;
    let mut java = Java::lease()?;
    create(&mut java, &admin, TOPIC)?;
    let mut group = Watched {
        java,
        admin: &admin,
        kcat: Kcat::new(&admin)?,
        produced: 0,
    };
    let often = "auto.commit.interval.ms=500";
    let early = "auto.offset.reset=earliest";
    let _rdkafka = group.kcat.background(
        &["-X", often, "-X", early, "-q", "-G", GROUP, TOPIC],
        &cluster.scratch().join("kcat.log"),
    )?;
    let arguments = [
        "--topic",
        TOPIC,
        "--group",
        GROUP,
        "--from-beginning",
        "--command-property",
        often,
    ];
    let log = cluster.scratch().join("console-consumer.log");
    let _console = Java::background(tool::CONSOLE_CONSUMER, &admin, &arguments, &log)?;
    // One that still joins is not recorded yet, and joins the next coordinator as somebody new. What is read after both have got partitions is committed by
    // both, and so by members that are.
    let members: BTreeSet<String> = wait_until("both are members", PATIENCE, || {
        let assigned = group.assigned()?;
        let settled = assigned.len() == 2 && assigned.iter().all(|(_, partitions)| *partitions > 0);
        ensure!(settled, "{assigned:?}");
        Ok(assigned.into_iter().map(|(id, _)| id).collect())
    })?;
    group.reads_on()?;

    let first = wait_until("somebody coordinates the group", PATIENCE, || {
        group.coordinator()
    })?;
    cluster.stop(first)?;
    group.goes_on_without(first, &members)?;
    cluster.launch(first)?;
    // Leadership may be given back to it meanwhile.
    let second = wait_until("somebody coordinates the group", PATIENCE, || {
        group.coordinator()
    })?;
    cluster.kill(second);
    group.goes_on_without(second, &members)
}
