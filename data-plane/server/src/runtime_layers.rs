//! The layers of the runtime: static values, what RTDS brought, and what was set over the admin interface.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::runtime::{Layer, LayerSource, Value, Values};
use culvert_proxy::Process;
use parking_lot::Mutex;
use serde_json::json;

/// All layers; a later one stands above an earlier one. Shared.
#[derive(Debug, Default)]
pub(crate) struct RuntimeLayers {
    layers: Mutex<Vec<Named>>,
}

#[derive(Debug)]
struct Named {
    name: Name,
    source: Source,
    values: Values,
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    Static,
    Admin,
    /// The resource of this name.
    Rtds(Name),
}

/// Why nothing can be set over the admin interface.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModifyError {
    #[error("no layer of layered_runtime is an admin_layer")]
    NoLayer,
    #[error("more than {MAX_SET} keys would be set")]
    TooMany,
}

impl RuntimeLayers {
    /// Begins with the layers of a bootstrap.
    pub(crate) fn begin(&self, layers: &[Layer], process: &Process) {
        let named = layers.iter().map(|layer| {
            let (source, values) = match &layer.source {
                LayerSource::Static(values) => (Source::Static, values.clone()),
                LayerSource::Admin => (Source::Admin, Values::new()),
                LayerSource::Rtds { name, .. } => (Source::Rtds(Arc::clone(name)), Values::new()),
            };
            Named { name: Arc::clone(&layer.name), source, values }
        });
        *self.layers.lock() = named.collect();
        self.publish(process);
    }

    /// RTDS brought a layer.
    pub(crate) fn set(&self, name: &Name, values: &Values, process: &Process) {
        for layer in self.layers.lock().iter_mut().filter(|layer| layer.source == Source::Rtds(Arc::clone(name))) {
            layer.values.clone_from(values);
        }
        self.publish(process);
    }

    /// `POST /runtime_modify`: an empty value takes back what was set.
    ///
    /// # Errors
    /// There is no admin layer, or it would hold too much.
    pub(crate) fn modify(&self, pairs: Vec<(String, String)>, process: &Process) -> Result<(), ModifyError> {
        {
            let mut layers = self.layers.lock();
            let layer = layers.iter_mut().find(|layer| layer.source == Source::Admin).ok_or(ModifyError::NoLayer)?;
            if layer.values.len() + pairs.len() > MAX_SET {
                return Err(ModifyError::TooMany);
            }
            for (key, value) in pairs {
                if value.is_empty() {
                    layer.values.remove(key.as_str());
                } else {
                    layer.values.insert(key.into(), Value::Text(value.into()));
                }
            }
        }
        self.publish(process);
        Ok(())
    }

    /// `GET /runtime`, as Envoy shows it.
    pub(crate) fn json(&self) -> serde_json::Value {
        let layers = self.layers.lock();
        let keys: BTreeSet<&Arc<str>> = layers.iter().flat_map(|layer| layer.values.keys()).collect();
        let entries: BTreeMap<&str, serde_json::Value> = keys
            .into_iter()
            .map(|key| {
                let values: Vec<String> = layers
                    .iter()
                    .map(|layer| layer.values.get(key).map(ToString::to_string).unwrap_or_default())
                    .collect();
                let last = values.iter().rev().find(|value| !value.is_empty()).cloned().unwrap_or_default();
                (&**key, json!({ "layer_values": values, "final_value": last }))
            })
            .collect();
        let names: Vec<&str> = layers.iter().map(|layer| &*layer.name).collect();
        json!({ "layers": names, "entries": entries })
    }

    /// Tells whoever goes by a key.
    fn publish(&self, process: &Process) {
        let layers = self.layers.lock();
        let mut last: HashMap<&Name, &Value> = HashMap::new();
        for layer in layers.iter() {
            last.extend(layer.values.iter());
        }
        let shares = last.into_iter().filter_map(|(key, value)| Some((Arc::clone(key), value.share()?)));
        // Under the lock, so that of two changes the later one is told last.
        process.shares.set(shares.collect());
    }
}

/// Keys that may be set over the admin interface.
const MAX_SET: usize = 10_000;
