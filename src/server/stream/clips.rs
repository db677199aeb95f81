//! Rows that a stream keeps for heads that read several frames.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::settings::{Clips, Settings, Unit};
use crate::{
    engine::{Head, Keep, Kept},
    stream::Ring,
};

/// Frames that a clip's head may keep for each that it reads, where they are counted in time.
const PER_FRAME: usize = 4;

/// What one head keeps.
#[derive(Debug)]
struct Own {
    clips: Clips,
    /// Input size and feature maps of the rows.
    reads: ([u32; 2], Vec<String>),
    image: (u32, u32),
    ring: Ring<Kept>,
}

/// Rings by the names of their heads.
#[derive(Debug, Default)]
pub(super) struct Rings(BTreeMap<Arc<str>, Own>);

/// Where a frame stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct At {
    pub(super) ordinal: u64,
    pub(super) captured: Option<i64>,
    pub(super) arrived: Duration,
    pub(super) id: u64,
}

impl At {
    /// When it was taken, else when it came, in microseconds from a moment before all others.
    pub(super) fn micros(&self) -> u64 {
        let arrived = || i64::try_from(self.arrived.as_nanos()).unwrap_or(i64::MAX);
        let micros = self.captured.unwrap_or_else(arrived) / 1000;
        micros.wrapping_sub(i64::MIN) as u64
    }
}

/// A clip that is to be run: its frames' numbers and rows.
pub(super) type Clip = Vec<(u64, Kept)>;

impl Rings {
    /// Lets go of rings of heads that read no clips of this shape any more.
    pub(super) fn retain(&mut self, settings: &Settings) {
        self.0.retain(|name, own| {
            let mut heads = settings.heads.iter();
            heads.any(|wanted| wanted.name == *name && wanted.clips == Some(own.clips))
        });
    }

    /// Bytes of the rows, once for each head that keeps them.
    pub(super) fn bytes(&self) -> u64 {
        let rows = self.0.values().flat_map(|own| own.ring.contents());
        rows.map(|row| row.bytes() as u64).sum()
    }

    /// A frame's row for the head: whether what was kept before is no part of its clips any more, and the clip to run.
    pub(super) fn enter(
        &mut self,
        name: &Arc<str>,
        (head, clips): (&Head, Clips),
        at: At,
        row: Kept,
    ) -> (bool, Option<Clip>) {
        let mut clips = clips;
        // As the head that runs now reads them: another version may read others.
        clips.shape.frames = head.manifest.frames();
        let reads = (head.manifest.input_size, head.manifest.features.clone());
        let make = || {
            let most = match clips.unit {
                Unit::Frames => usize::try_from(clips.shape.span()).unwrap_or(usize::MAX),
                Unit::Nanoseconds => PER_FRAME * clips.shape.frames,
            };
            Own {
                clips,
                reads: reads.clone(),
                image: row.image_size(),
                ring: Ring::new(clips.shape, most.saturating_add(2)),
            }
        };
        let own = self.0.entry(Arc::clone(name)).or_insert_with(make);
        let mut restarted = false;
        if own.clips != clips || own.reads != reads || own.image != row.image_size() {
            restarted = own.ring.contents().len() > 0;
            *own = make();
        }
        let position = match clips.unit {
            Unit::Frames => i64::try_from(at.ordinal).unwrap_or(i64::MAX),
            Unit::Nanoseconds => at
                .captured
                .unwrap_or_else(|| i64::try_from(at.arrived.as_nanos()).unwrap_or(i64::MAX)),
        };
        let entered = own.ring.enter(position, at.id, row);
        (restarted || entered.emptied, entered.clip)
    }

    /// The head has no row of a frame and is not to run: what it kept is let go of.
    pub(super) fn forget(&mut self, name: &Arc<str>) {
        self.0.remove(name);
    }
}

/// The rows to keep of a frame for these heads: one for each input size, with the maps that any of them reads.
pub(super) fn keep<'a>(heads: impl Iterator<Item = &'a Arc<Head>>) -> Vec<Keep> {
    let mut maps: BTreeMap<[u32; 2], Vec<String>> = BTreeMap::new();
    for head in heads {
        let own = maps.entry(head.manifest.input_size).or_default();
        own.extend(head.manifest.features.iter().cloned());
    }
    let keeps = maps.into_iter().map(|(size, mut maps)| {
        maps.sort_unstable();
        maps.dedup();
        Keep {
            size,
            maps: maps.into(),
        }
    });
    keeps.collect()
}
