//! Names for containers that were given none: an adjective and a bee-keeper's noun.

const ADJECTIVES: &[&str] = &[
    "admiring", "bold", "brave", "busy", "calm", "clever", "cool", "dapper", "eager", "elegant", "fervent", "friendly",
    "gallant", "gentle", "happy", "jolly", "keen", "kind", "lively", "loving", "lucid", "merry", "modest", "nimble",
    "noble", "peaceful", "proud", "quick", "quiet", "serene", "sharp", "steady", "sunny", "sweet", "tender", "upbeat",
    "vibrant", "vigilant", "witty", "zealous",
];
const NOUNS: &[&str] = &[
    "acacia", "alder", "apiary", "aster", "balsam", "basil", "beeswax", "blossom", "borage", "brood", "buzz", "clover",
    "comb", "cowslip", "daisy", "drone", "fennel", "forager", "foxglove", "heather", "hive", "honey", "hyssop",
    "larkspur", "lavender", "linden", "mallow", "mead", "meadow", "melissa", "mint", "nectar", "orchard", "pollen",
    "poppy", "queen", "rosemary", "sage", "skep", "smoker", "swarm", "thistle", "thyme", "verbena", "violet", "waggle",
    "willow", "yarrow",
];

pub fn invent(bits: u128) -> String {
    let pick = |list: &[&'static str], shift: u32| {
        let index = usize::try_from((bits >> shift) & 0xffff).unwrap_or(0) % list.len();
        list[index]
    };
    // A third part, since two thousand names meet soon on a busy host.
    format!("{}_{}_{:03x}", pick(ADJECTIVES, 0), pick(NOUNS, 16), (bits >> 32) & 0xfff)
}
