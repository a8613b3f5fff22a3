//! The options of the API's fields and messages that mean something to us: validation rules and what is sensitive. Read
//! once per message type.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use prost_reflect::{DynamicMessage, ExtensionDescriptor, FieldDescriptor, MessageDescriptor, OneofDescriptor};

use crate::pool::pool;
use crate::rules::FieldRules;

/// What the options of one message type say.
#[derive(Debug, Default)]
pub(crate) struct Annotations {
    rules: HashMap<u32, FieldRules>,
    sensitive: HashSet<u32>,
    /// Oneofs of which one alternative must be set.
    pub(crate) required_oneofs: Vec<OneofDescriptor>,
}

impl Annotations {
    pub(crate) fn rules(&self, field: &FieldDescriptor) -> Option<&FieldRules> {
        self.rules.get(&field.number())
    }

    pub(crate) fn all_rules(&self) -> impl Iterator<Item = (u32, &FieldRules)> {
        self.rules.iter().map(|(number, rules)| (*number, rules))
    }

    /// `udpa.annotations.sensitive`: key material, passwords.
    pub(crate) fn is_sensitive(&self, field: &FieldDescriptor) -> bool {
        self.sensitive.contains(&field.number())
    }
}

/// The annotations of a message type.
pub(crate) fn of(message: &MessageDescriptor) -> Arc<Annotations> {
    // At most as many entries as there are message types in the pool.
    static CACHE: LazyLock<Mutex<HashMap<String, Arc<Annotations>>>> = LazyLock::new(Mutex::default);
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = cache.get(message.full_name()) {
        return Arc::clone(found);
    }
    let read = Arc::new(read(message));
    cache.insert(message.full_name().to_owned(), Arc::clone(&read));
    read
}

fn read(message: &MessageDescriptor) -> Annotations {
    static EXTENSIONS: LazyLock<Extensions> = LazyLock::new(Extensions::find);
    let extensions = &*EXTENSIONS;
    let mut annotations = Annotations::default();
    // `validate.disabled` and `ignored`: no rules of this message hold.
    if flag(&message.options(), extensions.disabled.as_ref()) || flag(&message.options(), extensions.ignored.as_ref()) {
        return annotations;
    }
    for field in message.fields() {
        let options = field.options();
        if let Some(extension) = extensions.rules.as_ref().filter(|extension| options.has_extension(extension))
            && let Some(rules) = options.get_extension(extension).as_message()
            && let Ok(rules) = rules.transcode_to::<FieldRules>()
        {
            annotations.rules.insert(field.number(), rules);
        }
        if flag(&options, extensions.sensitive.as_ref()) {
            annotations.sensitive.insert(field.number());
        }
    }
    annotations.required_oneofs =
        message.oneofs().filter(|oneof| flag(&oneof.options(), extensions.required.as_ref())).collect();
    annotations
}

struct Extensions {
    rules: Option<ExtensionDescriptor>,
    required: Option<ExtensionDescriptor>,
    disabled: Option<ExtensionDescriptor>,
    ignored: Option<ExtensionDescriptor>,
    sensitive: Option<ExtensionDescriptor>,
}

impl Extensions {
    fn find() -> Self {
        let find = |name| pool().get_extension_by_name(name);
        Self {
            rules: find("validate.rules"),
            required: find("validate.required"),
            disabled: find("validate.disabled"),
            ignored: find("validate.ignored"),
            sensitive: find("udpa.annotations.sensitive"),
        }
    }
}

fn flag(options: &DynamicMessage, extension: Option<&ExtensionDescriptor>) -> bool {
    extension.is_some_and(|extension| options.get_extension(extension).as_bool() == Some(true))
}
