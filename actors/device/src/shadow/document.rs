//! One document of a shadow: a tree of named values, each of which knows when and by whom it was set.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

/// Deepest nesting of objects.
pub const MAX_DEPTH: usize = 8;
/// Largest document as JSON text, in bytes.
pub const MAX_SIZE: usize = 32 << 10;

const LEAF: u8 = 0;
const BRANCH: u8 = 1;

/// A path into a document: names from the root. It is written with `.` between them.
pub type Path = Vec<Arc<str>>;

/// A path as people write it.
pub fn shown(path: &[Arc<str>]) -> String {
    path.join(".")
}

/// A value of a document: anything but an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Leaf {
    /// The value: a scalar or an array, never `null`.
    pub(super) value: Value,
    /// When it was set (the engine's time; for a reported value that names its time, the device's).
    pub(super) at: Timestamp,
    /// By whom.
    pub(super) by: Arc<str>,
    /// From then on it no longer counts.
    pub(super) expires: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Leaf(Leaf),
    Branch(Branch),
}

type Branch = BTreeMap<Arc<str>, Node>;

/// A JSON object whose leaves carry metadata. No value in it is `null`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Document {
    root: Branch,
}

/// What the leaves that a patch sets are marked with.
#[derive(Debug, Clone)]
pub(super) struct Mark<'a> {
    /// When.
    pub(super) at: Timestamp,
    /// By whom.
    pub(super) by: &'a Arc<str>,
    /// Until when they count.
    pub(super) expires: Option<Timestamp>,
}

impl Document {
    /// Applies a JSON merge patch (RFC 7396): `null` deletes, objects merge, everything else replaces. Returns the
    /// patch that takes the values back; it is empty if no value has changed.
    pub(super) fn merge(&mut self, patch: &Map<String, Value>, mark: &Mark<'_>) -> Map<String, Value> {
        merge(&mut self.root, patch, mark)
    }

    /// The document without metadata.
    pub(super) fn to_json(&self) -> Map<String, Value> {
        to_json(&self.root)
    }

    /// All leaves with their paths, ordered by path.
    pub(super) fn leaves(&self) -> Vec<(Path, &Leaf)> {
        let mut out = Vec::new();
        leaves(&self.root, &mut Vec::new(), &mut out);
        out
    }

    /// The leaf at a path.
    pub(super) fn leaf(&self, path: &[Arc<str>]) -> Option<&Leaf> {
        let (last, branches) = path.split_last()?;
        let mut branch = &self.root;
        for name in branches {
            match branch.get(name) {
                Some(Node::Branch(next)) => branch = next,
                _ => return None,
            }
        }
        match branch.get(last) {
            Some(Node::Leaf(leaf)) => Some(leaf),
            _ => None,
        }
    }

    /// Notes when a leaf was set, if there is one at that path.
    pub(super) fn set_time(&mut self, path: &[Arc<str>], at: Timestamp) {
        let Some((last, branches)) = path.split_last() else { return };
        let mut branch = &mut self.root;
        for name in branches {
            match branch.get_mut(name) {
                Some(Node::Branch(next)) => branch = next,
                _ => return,
            }
        }
        if let Some(Node::Leaf(leaf)) = branch.get_mut(last) {
            leaf.at = at;
        }
    }

    /// The earliest time at which a leaf ceases to count.
    pub(super) fn expires(&self) -> Option<Timestamp> {
        self.leaves().iter().filter_map(|(_, leaf)| leaf.expires).min()
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put(&self.root, out);
    }

    pub(super) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        Ok(Self { root: get(cursor, MAX_DEPTH + 1)? })
    }
}

/// The value at a path of a plain JSON object; `None` also where an object stands.
pub(super) fn value_at<'a>(object: &'a Map<String, Value>, path: &[Arc<str>]) -> Option<&'a Value> {
    let (last, branches) = path.split_last()?;
    let mut branch = object;
    for name in branches {
        branch = branch.get(&**name)?.as_object()?;
    }
    branch.get(&**last).filter(|value| !value.is_object() && !value.is_null())
}

/// Puts a value at a path of a patch, with the objects on the way to it.
pub(super) fn place(patch: &mut Map<String, Value>, path: &[Arc<str>], value: Value) {
    let Some((last, branches)) = path.split_last() else { return };
    let mut branch = patch;
    for name in branches {
        let next = branch.entry(name.to_string()).or_insert_with(|| Value::Object(Map::new()));
        if !next.is_object() {
            *next = Value::Object(Map::new());
        }
        match next {
            Value::Object(next) => branch = next,
            _ => return,
        }
    }
    branch.insert(last.to_string(), value);
}

/// Whether a patch sets a value that also stands in `object`.
pub fn touches(object: &Map<String, Value>, patch: &Map<String, Value>) -> bool {
    paths_of(patch).iter().any(|path| value_at(object, path).is_some())
}

/// Paths of all values in a plain JSON object that are not objects themselves (`null` included).
pub(super) fn paths_of(object: &Map<String, Value>) -> Vec<Path> {
    fn walk(object: &Map<String, Value>, at: &mut Path, out: &mut Vec<Path>) {
        for (name, value) in object {
            at.push(Arc::from(name.as_str()));
            match value {
                Value::Object(inner) => walk(inner, at, out),
                _ => out.push(at.clone()),
            }
            at.pop();
        }
    }
    let mut out = Vec::new();
    walk(object, &mut Vec::new(), &mut out);
    out.sort();
    out
}

/// Applies a merge patch (RFC 7396) to a plain JSON object.
pub fn merge_plain(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(name)),
            Value::Object(inner) => {
                let slot = target.entry(name.clone()).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(slot) = slot {
                    merge_plain(slot, inner);
                }
            }
            value => drop(target.insert(name.clone(), value.clone())),
        }
    }
}

/// The merge patch that makes `new` out of `old`.
pub(super) fn difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in new {
        match (old.get(name), value) {
            (Some(before), value) if before == value => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                patch.insert(name.clone(), Value::Object(difference(before, after)));
            }
            (_, value) => drop(patch.insert(name.clone(), value.clone())),
        }
    }
    patch
}

/// How deep objects are nested: 1 for an object without objects in it.
pub(super) fn depth(object: &Map<String, Value>) -> usize {
    1 + object.values().filter_map(Value::as_object).map(depth).max().unwrap_or(0)
}

/// Whether two values mean the same. Numbers are compared by value, so that 1 and 1.0 are one; `deadband` is how far
/// apart they may be.
pub(super) fn alike(a: &Value, b: &Value, deadband: f64) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(x), Some(y)) => a == b || x == y || (x - y).abs() <= deadband,
        _ => a == b,
    }
}

fn merge(branch: &mut Branch, patch: &Map<String, Value>, mark: &Mark<'_>) -> Map<String, Value> {
    let mut undo = Map::new();
    for (name, value) in patch {
        match (value, branch.get_mut(name.as_str())) {
            (Value::Null, None) => {}
            (Value::Null, Some(_)) => {
                if let Some(old) = branch.remove(name.as_str()) {
                    undo.insert(name.clone(), node_to_json(&old));
                }
            }
            (Value::Object(inner), Some(Node::Branch(below))) => {
                let back = merge(below, inner, mark);
                if !back.is_empty() {
                    undo.insert(name.clone(), Value::Object(back));
                }
            }
            (Value::Object(inner), old) => {
                let back = old.map_or(Value::Null, |old| node_to_json(old));
                undo.insert(name.clone(), back);
                let mut below = Branch::new();
                merge(&mut below, inner, mark);
                branch.insert(Arc::from(name.as_str()), Node::Branch(below));
            }
            (value, old) => {
                match old {
                    Some(Node::Leaf(leaf)) if leaf.value == *value => {
                        // It holds since it was first set; only how long it counts may change.
                        leaf.expires = mark.expires;
                        continue;
                    }
                    Some(old) => drop(undo.insert(name.clone(), node_to_json(old))),
                    None => drop(undo.insert(name.clone(), Value::Null)),
                }
                let leaf = Leaf { value: value.clone(), at: mark.at, by: mark.by.clone(), expires: mark.expires };
                branch.insert(Arc::from(name.as_str()), Node::Leaf(leaf));
            }
        }
    }
    undo
}

fn node_to_json(node: &Node) -> Value {
    match node {
        Node::Leaf(leaf) => leaf.value.clone(),
        Node::Branch(branch) => Value::Object(to_json(branch)),
    }
}

fn to_json(branch: &Branch) -> Map<String, Value> {
    branch.iter().map(|(name, node)| (name.to_string(), node_to_json(node))).collect()
}

fn leaves<'a>(branch: &'a Branch, at: &mut Path, out: &mut Vec<(Path, &'a Leaf)>) {
    for (name, node) in branch {
        at.push(name.clone());
        match node {
            Node::Leaf(leaf) => out.push((at.clone(), leaf)),
            Node::Branch(branch) => leaves(branch, at, out),
        }
        at.pop();
    }
}

fn put(branch: &Branch, out: &mut Vec<u8>) {
    varint::put(out, branch.len() as u64);
    for (name, node) in branch {
        varint::put_bytes(out, name.as_bytes());
        match node {
            Node::Leaf(leaf) => {
                out.push(LEAF);
                put_json(out, &leaf.value);
                varint::put_signed(out, leaf.at.0);
                varint::put_bytes(out, leaf.by.as_bytes());
                put_time(out, leaf.expires);
            }
            Node::Branch(branch) => {
                out.push(BRANCH);
                put(branch, out);
            }
        }
    }
}

fn get(cursor: &mut Cursor<'_>, deepest: usize) -> Result<Branch, Broken> {
    if deepest == 0 {
        return cursor.broken("a document that is not so deep");
    }
    let mut branch = Branch::new();
    for _ in 0..cursor.count(3, "a number of values")? {
        let name: Arc<str> = Arc::from(cursor.text("a name")?);
        let node = match cursor.byte("a kind of value")? {
            LEAF => Node::Leaf(Leaf {
                value: get_json(cursor)?,
                at: Timestamp(cursor.signed("a time")?),
                by: Arc::from(cursor.text("who set it")?),
                expires: get_time(cursor)?,
            }),
            BRANCH => Node::Branch(get(cursor, deepest - 1)?),
            _ => return cursor.broken("a kind of value"),
        };
        branch.insert(name, node);
    }
    Ok(branch)
}

pub(super) fn put_json(out: &mut Vec<u8>, value: &Value) {
    varint::put_bytes(out, value.to_string().as_bytes());
}

pub(super) fn get_json(cursor: &mut Cursor<'_>) -> Result<Value, Broken> {
    let text = cursor.text("a JSON value")?;
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(_) => cursor.broken("a JSON value"),
    }
}

pub(super) fn get_object(cursor: &mut Cursor<'_>) -> Result<Map<String, Value>, Broken> {
    match get_json(cursor)? {
        Value::Object(object) => Ok(object),
        _ => cursor.broken("a JSON object"),
    }
}

pub(super) fn put_object(out: &mut Vec<u8>, object: &Map<String, Value>) {
    let text = serde_json::to_string(object).unwrap_or_else(|_| "{}".to_owned());
    varint::put_bytes(out, text.as_bytes());
}

pub(super) fn put_time(out: &mut Vec<u8>, time: Option<Timestamp>) {
    match time {
        None => out.push(0),
        Some(time) => {
            out.push(1);
            varint::put_signed(out, time.0);
        }
    }
}

pub(super) fn get_time(cursor: &mut Cursor<'_>) -> Result<Option<Timestamp>, Broken> {
    Ok(match cursor.byte("whether there is a time")? {
        0 => None,
        _ => Some(Timestamp(cursor.signed("a time")?)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn merge_patches_follow_the_rfc() {
        // The examples of RFC 7396, appendix A, that are about objects.
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let by = Arc::from("x");
            let mark = Mark { at: Timestamp(5), by: &by, expires: None };
            let mut document = Document::default();
            document.merge(&object(target.clone()), &mark);
            let undo = document.merge(&object(patch.clone()), &mark);
            assert_eq!(Value::Object(document.to_json()), expected, "{target} {patch}");
            let mut plain = object(target.clone());
            merge_plain(&mut plain, &object(patch.clone()));
            assert_eq!(Value::Object(plain), expected);
            let mut bytes = Vec::new();
            document.put(&mut bytes);
            assert_eq!(Document::get(&mut Cursor::new(&bytes)), Ok(document.clone()));
            document.merge(&undo, &mark);
            assert_eq!(Value::Object(document.to_json()), target, "undone: {patch}");
        }
    }

    #[test]
    fn paths_and_values() {
        let mut patch = Map::new();
        let path: Path = ["a", "b"].map(Arc::from).into();
        place(&mut patch, &path, json!(3));
        assert_eq!(Value::Object(patch.clone()), json!({"a": {"b": 3}}));
        assert_eq!(paths_of(&patch), std::slice::from_ref(&path));
        assert_eq!((value_at(&patch, &path), value_at(&patch, &path[..1])), (Some(&json!(3)), None));
        assert_eq!((depth(&patch), shown(&path)), (2, "a.b".to_owned()));
        let (old, new) = (object(json!({"a": {"b": 1, "c": 2}, "d": [1]})), object(json!({"a": {"b": 2}, "e": "x"})));
        let patch = difference(&old, &new);
        assert_eq!(Value::Object(patch.clone()), json!({"a": {"b": 2, "c": null}, "d": null, "e": "x"}));
        let mut made = old.clone();
        merge_plain(&mut made, &patch);
        assert_eq!(made, new);
        assert!(alike(&json!(1), &json!(1.0), 0.0) && !alike(&json!(1), &json!("1"), 5.0));
        assert!(alike(&json!(20.5), &json!(20.6), 0.2) && !alike(&json!(20.5), &json!(20.8), 0.2));
    }
}
