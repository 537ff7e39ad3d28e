//! `make demo`: from a clone to a table of what was shown.

mod table;

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{
    cluster::{Selection, Target},
    progress::say,
    scenario::{self, NAMESPACE, OPERATOR_NAMESPACE, Shown, Site, shows},
};

/// Shows everything; what is started stays, so that it can be explored and the next run is quick.
///
/// # Errors
/// When something cannot be started or is not as claimed. What was started is left to be looked at.
pub fn run(name: &str) -> Result<()> {
    let start = Instant::now();
    let selection = Selection::from_environment()?;
    say("the demo: a Kubernetes, the operator's chart, examples/quickstart, and what it does");
    if selection == Selection::BuiltIn {
        say(
            "the first build of Kubernetes itself takes about 10 minutes on two cores; it is kept, so later runs start in seconds",
        );
    }
    let site = Site::up(selection, name).context("the Kubernetes of the demo does not start")?;
    let shown = show(&site).inspect_err(|_| {
        say(format_args!(
            "failed after {:.0} s; it is left as it is: `make demo-stop` removes it",
            start.elapsed().as_secs_f32()
        ));
    })?;
    table::print(&shown, start.elapsed(), &farewell(&site))
}

/// Removes all that the demo started.
///
/// # Errors
/// When something cannot be removed.
pub fn stop(name: &str) -> Result<()> {
    let selection = Selection::from_environment()?;
    if selection == Selection::Current {
        // The cluster itself stays.
        return scenario::remove_objects(&Site::up(selection, name)?);
    }
    Target::remove(selection, name)?;
    say("the demo is gone: no process, namespace, mount or file of its cluster is left");
    Ok(())
}

fn show(site: &Site) -> Result<Vec<Shown>> {
    scenario::install(site)?;
    let kubectl = site.kubectl();
    let mut shown = vec![shows::six_kinds_are_ready(kubectl)?];
    say("starting the pods of alice, analytics, mallory, client-1 and an outsider");
    let people = shows::People::start(kubectl)?;
    for (what, step) in [
        (
            "alice produces, analytics consumes",
            shows::People::alice_produces_and_analytics_consumes as Step,
        ),
        (
            "mallory tries to write and to read",
            shows::People::mallory_is_refused,
        ),
        (
            "a client without TLS tries",
            shows::People::plaintext_is_refused,
        ),
        (
            "a pod without the label tries",
            shows::People::network_policy_cuts_the_outsider,
        ),
        (
            "client-1 and alice send 24 MB each",
            shows::People::client_1_is_throttled,
        ),
    ] {
        say(what);
        shown.push(step(&people).with_context(|| format!("not as claimed: {what}"))?);
    }
    shown.push(
        scenario::both_authorities_are_replaced(kubectl)
            .context("not as claimed: the replacement of the authorities")?,
    );
    Ok(shown)
}

type Step = fn(&shows::People) -> Result<Shown>;

/// What to do next.
fn farewell(site: &Site) -> String {
    let kubectl = site.kubectl().shown();
    format!(
        "Explore:
  alias k='{kubectl} -n {NAMESPACE}'
  k get palisade                                    # all six kinds
  k describe securecluster events                   # conditions, brokers, certificates, checklist
  k get events --sort-by=.lastTimestamp
  k exec -it demo-alice -- sh                       # kcat -F /etc/palisade/credentials/librdkafka.conf -t user-events -P
  k logs statefulset/events
  {kubectl} -n {OPERATOR_NAMESPACE} logs deployment/palisade-operator
Stop:
  make demo-stop
"
    )
}
