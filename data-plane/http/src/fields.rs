//! Header and trailer fields as a flat list over one buffer: no allocation per field, reused from request to request.

/// Fields in order of arrival. Names are lower-case and valid, values hold no CR, LF or NUL: whoever adds one has
/// checked it (the codecs, or the model when it was parsed).
#[derive(Debug, Default, Clone)]
pub struct Fields {
    bytes: Vec<u8>,
    list: Vec<Field>,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    start: u32,
    name: u16,
    value: u32,
}

impl Fields {
    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let _ = (name, value);
        todo!()
    }

    /// The first value of that name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(candidate, _)| *candidate == name).map(|(_, value)| value)
    }

    /// Replaces all fields of that name by one.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes all fields of that name; whether there were any.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        let _ = name;
        todo!()
    }

    /// Keeps the fields that `keep` likes.
    pub fn retain(&mut self, keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let _ = keep;
        todo!()
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|field| {
            let name_end = field.start as usize + usize::from(field.name);
            (&self.bytes[field.start as usize..name_end], &self.bytes[name_end..name_end + field.value as usize])
        })
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Forgets all fields, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.list.clear();
    }
}
