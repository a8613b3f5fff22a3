//! Judges received resources: each parsed on its own.

use std::sync::Arc;

use culvert_api::Any;
use culvert_model::Name;
use culvert_model::report::Finding;
use culvert_model::resource::{Resource, parse_any_after};
use culvert_xds::Rejection;

use super::references::key_of;
use crate::inventory::Given;

/// A received resource and what was found in it.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) name: Name,
    pub(crate) given: Given,
    /// Or every reason why it is refused.
    pub(crate) verdict: Result<Resource, String>,
    /// Why it is refused although nothing is wrong with it: somebody else holds its address. It is staged, and tried until
    /// it comes into force.
    pub(crate) hindrance: Option<String>,
}

/// Parses one resource, in place of what was accepted `before` under its name. A warning is logged; it refuses nothing.
/// **What repeats the accepted bytes is not looked at again**: nothing but they decides what they are parsed to. What depends on
/// what else there is is judged later, as ever.
pub(crate) fn judge(
    type_url: &str,
    name: &Name,
    version: &str,
    body: &Any,
    before: Option<&(Given, Resource)>,
) -> Judged {
    // The bytes kept are those that came last: the ones before may hold all of an older response in memory.
    let given = Given::now(version, body.clone());
    if let Some((_, resource)) = before.filter(|(before, _)| before.resource == *body) {
        return Judged { name: Arc::clone(name), given, verdict: Ok(resource.clone()), hindrance: None };
    }
    let before = before.map(|(given, resource)| (&*given.resource.value, resource));
    let parsed = parse_any_after(&body.type_url, &body.value, before);
    let short = culvert_api::type_url::short_name(type_url);
    for warning in &parsed.warnings {
        tracing::warn!("{short}/{name}: {warning}");
    }
    let verdict = parsed.value.map_err(|findings| text_of(&findings)).and_then(|resource| {
        let (_, own) = key_of(&resource);
        if own == *name { Ok(resource) } else { Err(format!("name: it says {own:?}, and was sent as {name:?}")) }
    });
    Judged { name: Arc::clone(name), given, verdict, hindrance: None }
}

impl Judged {
    /// What goes back to the control plane, if it is refused.
    pub(crate) fn rejection(&self) -> Option<Rejection> {
        let reason = self.verdict.as_ref().err().or(self.hindrance.as_ref())?;
        Some(Rejection { name: self.name.to_string(), reason: reason.clone() })
    }
}

fn text_of(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
