//! What it costs to read an expression that ignores case, known before it is read.
//!
//! Such a class has every code point folded, again at each bracket around it: `(?i)\p{any}` takes ten milliseconds, and four
//! thousand bytes hold hundreds of them. A limit on the program's size does not help, since little remains of it.

use regex_syntax::ast::{self, Ast, ClassPerl, ClassPerlKind, ClassSetBinaryOp, ClassSetItem, Flag, Flags};

/// How many code points have to be folded, about and at most.
pub(super) fn effort(parsed: &Ast) -> usize {
    ast::visit(parsed, Effort::default()).unwrap_or_else(|never| match never {})
}

#[derive(Debug, Default)]
struct Effort {
    ignores_case: bool,
    /// Classes in brackets around what is at hand.
    depth: usize,
    points: usize,
}

impl Effort {
    fn flags(&mut self, flags: &Flags) {
        self.ignores_case |= flags.flag_state(Flag::CaseInsensitive) == Some(true);
    }

    fn add(&mut self, points: usize, times: usize) {
        self.points = self.points.saturating_add(points.saturating_mul(times));
    }
}

impl ast::Visitor for Effort {
    type Output = usize;
    type Err = std::convert::Infallible;

    fn finish(self) -> Result<usize, Self::Err> {
        Ok(if self.ignores_case { self.points } else { 0 })
    }

    fn visit_pre(&mut self, at: &Ast) -> Result<(), Self::Err> {
        match at {
            Ast::Flags(set) => self.flags(&set.flags),
            Ast::Group(group) => group.flags().into_iter().for_each(|flags| self.flags(flags)),
            Ast::ClassUnicode(_) => self.add(ALL, 1),
            Ast::ClassBracketed(_) => self.depth += 1,
            _ => {}
        }
        Ok(())
    }

    fn visit_post(&mut self, at: &Ast) -> Result<(), Self::Err> {
        if let Ast::ClassBracketed(_) = at {
            self.depth -= 1;
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        let depth = self.depth;
        match item {
            ClassSetItem::Range(range) => {
                let (start, end) = (u32::from(range.start.c), u32::from(range.end.c));
                self.add(usize::try_from(end.saturating_sub(start)).unwrap_or(ALL), depth);
            }
            // Of its own, and in each of the brackets.
            ClassSetItem::Unicode(_) => self.add(ALL, depth + 1),
            ClassSetItem::Perl(ClassPerl { kind: ClassPerlKind::Word, negated: false, .. }) => self.add(WORD, depth),
            ClassSetItem::Perl(class) if class.negated => self.add(ALL, depth),
            ClassSetItem::Ascii(class) if class.negated => self.add(ALL, depth),
            ClassSetItem::Bracketed(class) => {
                // What it does not name is what the brackets around it have to fold.
                if class.negated {
                    self.add(ALL, depth);
                }
                self.depth += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn visit_class_set_item_post(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        if let ClassSetItem::Bracketed(_) = item {
            self.depth -= 1;
        }
        Ok(())
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Self::Err> {
        self.depth += 1;
        Ok(())
    }

    fn visit_class_set_binary_op_post(&mut self, _: &ClassSetBinaryOp) -> Result<(), Self::Err> {
        self.depth -= 1;
        Ok(())
    }
}

/// All of Unicode.
pub(super) const ALL: usize = 0x11_0000;
/// What `\w` is.
const WORD: usize = 140_000;
