//! Plain records in CBOR. Indefinite lengths are taken here (streaming encoders write them), unlike in frames.

use std::borrow::Cow;

use super::{Node, Source};
use crate::payload::extra::{Items, put_cbor, scalar};
use crate::payload::value::Raw;
use crate::payload::wire::{Fault, Item, Wire};

/// A place in a CBOR payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CborSource<'a>(Wire<'a>);

impl<'a> CborSource<'a> {
    pub(crate) fn new(payload: &'a [u8], at: usize) -> Self {
        Self(Wire::new(payload, at))
    }
}

impl<'a> Source<'a> for CborSource<'a> {
    type Items = Items;

    #[inline]
    fn at(&self) -> usize {
        self.0.at()
    }

    #[inline]
    fn node(&mut self) -> Result<Node<'a, Items>, Fault> {
        let at = self.0.at();
        let mut item = self.0.item()?;
        if let Item::Tag(tag) = item {
            // Most tags only say what a value is meant as. These say that it is something else than it looks like.
            if matches!(tag, 1..=5) {
                return Wire::fault(at, "tags 1 to 5 (epoch time, big numbers) are not taken: send the value itself");
            }
            item = self.0.item()?;
        }
        Ok(match item {
            Item::Array(len) => Node::Array(Items::new(len)),
            Item::Map(len) => Node::Map(Items::new(len)),
            Item::Tag(_) => return Wire::fault(at, "a tag on a tag"),
            Item::Break => return Wire::fault(at, "not CBOR: a break without a beginning"),
            item => Node::Scalar(scalar(item).unwrap_or(Raw::Null)),
        })
    }

    #[inline]
    fn element(&mut self, items: &mut Items) -> Result<bool, Fault> {
        Ok(items.next(&mut self.0))
    }

    #[inline]
    fn key(&mut self, items: &mut Items) -> Result<Option<Cow<'a, str>>, Fault> {
        if !items.next(&mut self.0) {
            return Ok(None);
        }
        let at = self.0.at();
        match self.0.item()? {
            Item::Text(text) => Ok(Some(Cow::Borrowed(text))),
            _ => Wire::fault(at, "the keys of a plain record are text"),
        }
    }

    #[inline]
    fn skip(&mut self, depth: usize) -> Result<(), Fault> {
        self.0.skip(depth, true)
    }

    fn copy(&mut self, depth: usize, out: &mut String) -> Result<(), Fault> {
        put_cbor(&mut self.0, depth, true, out)
    }

    #[inline]
    fn double(&mut self) -> Option<f64> {
        self.0.double()
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.0.left() {
            0 => Ok(()),
            _ => Wire::fault(self.0.at(), "bytes after the end of the value"),
        }
    }
}
