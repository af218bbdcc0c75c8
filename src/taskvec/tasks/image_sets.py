"""The table of known image sets: class names, prompts, and where each comes from. No pictures and no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub. Ids and columns were written from memory and other projects, not checked there."""

    id: str
    image: str = "image"
    label: str = "label"
    train: str = "train"
    validation: str | None = None
    test: str | None = "test"
    config: str | None = None


@dataclass(frozen=True)
class ImageSet:
    """A known set.

    Args:
        name: as `image_task` takes it.
        classes: names in the order of the labels; empty where they are taken from the data.
        templates: prompts for zero-shot heads, ``{}`` where the class name goes.
        hub: where `download` finds it; None if it has to be got by hand.
        origin: who made it and where it is published.
        folders: what the folder may be called, beside its name.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    hub: Hub | None
    origin: str
    folders: tuple[str, ...] = ()


def _names(text: str) -> tuple[str, ...]:
    return tuple(x.strip() for x in text.split(","))


PHOTO = ("a photo of a {}.",)
DIGITS = _names("0, 1, 2, 3, 4, 5, 6, 7, 8, 9")
NUMBER = ('a photo of the number "{}".',)
THINGS = ("a photo of a {}.", "a blurry photo of a {}.", "a low resolution photo of a {}.", "a photo of the {}.")
FASHION = _names("T-shirt, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot")
CIFAR10 = _names("airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck")
STL10 = _names("airplane, bird, car, cat, deer, dog, horse, monkey, ship, truck")
SIGNS = _names(
    "20 km/h speed limit, 30 km/h speed limit, 50 km/h speed limit, 60 km/h speed limit, 70 km/h speed limit, "
    "80 km/h speed limit, end of 80 km/h speed limit, 100 km/h speed limit, 120 km/h speed limit, no passing, "
    "no passing for trucks, right of way at the next crossing, priority road, yield, stop, no vehicles, no trucks, no entry, "
    "general caution, curve to the left, curve to the right, double curve, bumpy road, slippery road, "
    "road narrows on the right, road work, traffic signals, pedestrians, children, bicycles, ice or snow, wild animals, "
    "end of all limits, turn right ahead, turn left ahead, ahead only, straight on or right, straight on or left, keep right, "
    "keep left, roundabout, end of no passing, end of no passing for trucks"
)
EUROSAT = _names(
    "annual crop, forest, herbaceous vegetation, highway, industrial, pasture, permanent crop, residential, river, sea lake"
)
DTD = _names(
    "banded, blotchy, braided, bubbly, bumpy, chequered, cobwebbed, cracked, crosshatched, crystalline, dotted, fibrous, "
    "flecked, freckled, frilly, gauzy, grid, grooved, honeycombed, interlaced, knitted, lacelike, lined, marbled, matted, "
    "meshed, paisley, perforated, pitted, pleated, polka-dotted, porous, potholed, scaly, smeared, spiralled, sprinkled, "
    "stained, stratified, striped, studded, swirly, veined, waffled, woven, wrinkled, zigzagged"
)
RESISC45 = _names(
    "airplane, airport, baseball diamond, basketball court, beach, bridge, chaparral, church, circular farmland, cloud, "
    "commercial area, dense residential, desert, forest, freeway, golf course, ground track field, harbor, industrial area, "
    "intersection, island, lake, meadow, medium residential, mobile home park, mountain, overpass, palace, parking lot, "
    "railway, railway station, rectangular farmland, river, roundabout, runway, sea ice, ship, snowberg, sparse residential, "
    "stadium, storage tank, tennis court, terrace, thermal power station, wetland"
)
AERIAL = ("an aerial photo of {}.", "a satellite photo of {}.", "a satellite photo of a {}.")
TEXTURE = ("a photo of a {} texture.", "a photo of a {} pattern.", "a photo of a {} thing.")

SETS: Mapping[str, ImageSet] = MappingProxyType(
    {
        row.name: row
        for row in (
            ImageSet("mnist", DIGITS, NUMBER, Hub("ylecun/mnist"), "LeCun, Cortes, Burges: handwritten digits"),
            ImageSet(
                "fashion_mnist", FASHION, PHOTO, Hub("zalando-datasets/fashion_mnist"),
                "Zalando: articles of clothing (also Debian's package dataset-fashion-mnist)",
            ),
            ImageSet(
                "kmnist", _names("o, ki, su, tsu, na, ha, ma, ya, re, wo"), ("a photo of the character {}.",),
                Hub("tanganke/kmnist"), "CODH: cursive Japanese characters",
            ),
            ImageSet(
                "notmnist", _names("A, B, C, D, E, F, G, H, I, J"), ('a photo of the letter "{}".',), None,
                "Bulatov: letters in many fonts (idx files as MNIST's)",
            ),
            ImageSet("usps", DIGITS, NUMBER, Hub("flwrlabs/usps"), "Hull 1994: digits on envelopes"),
            ImageSet(
                "sign_digits", DIGITS, ("a photo of a hand that signs the number {}.",), None,
                "Turkey Ankara Ayranci Anadolu High School: sign language digits",
            ),
            ImageSet("svhn", DIGITS, NUMBER, Hub("ufldl-stanford/svhn", config="cropped_digits"), "Netzer et al. 2011: house numbers"),
            ImageSet(
                "gtsrb", SIGNS, ('a photo of a "{}" traffic sign.',), Hub("tanganke/gtsrb"),
                "INI Bochum, Stallkamp et al. 2012: German traffic signs", ("gtsrb32",),
            ),
            ImageSet("eurosat", EUROSAT, AERIAL, Hub("tanganke/eurosat"), "Helber et al. 2019: Sentinel-2 land use", ("EuroSAT",)),
            ImageSet("resisc45", RESISC45, AERIAL, Hub("tanganke/resisc45"), "Cheng et al. 2017: remote sensing scenes", ("RESISC45",)),
            ImageSet("dtd", DTD, TEXTURE, Hub("tanganke/dtd"), "Cimpoi et al. 2014: describable textures"),
            ImageSet(
                "cars", (), ("a photo of a {}.", "a photo of my {}.", "a photo of a {}, a kind of car."),
                Hub("tanganke/stanford_cars"), "Krause et al. 2013: Stanford Cars", ("stanford_cars",),
            ),
            ImageSet("sun397", (), ("a photo of a {}.", "a photo of the {}."), Hub("tanganke/sun397"), "Xiao et al. 2010: scenes", ("SUN397",)),
            ImageSet(
                "imagenet", (), THINGS, Hub("ILSVRC/imagenet-1k", test="validation"),
                "Russakovsky et al. 2015: the papers' control; access is granted on request", ("imagenet-1k",),
            ),
            ImageSet("cifar10", CIFAR10, THINGS, Hub("uoft-cs/cifar10", image="img"), "Krizhevsky 2009"),
            ImageSet("cifar100", (), THINGS, Hub("uoft-cs/cifar100", image="img", label="fine_label"), "Krizhevsky 2009"),
            ImageSet("stl10", STL10, THINGS, Hub("tanganke/stl10"), "Coates et al. 2011"),
            ImageSet("pets", (), ("a photo of a {}, a kind of pet.",), Hub("timm/oxford-iiit-pet"), "Parkhi et al. 2012: cats and dogs", ("oxford-iiit-pet",)),
            ImageSet("flowers", (), ("a photo of a {}, a kind of flower.",), Hub("dpdl-benchmark/oxford_flowers102"), "Nilsback and Zisserman 2008", ("oxford_flowers102",)),
        )
    }
)  # fmt: skip
