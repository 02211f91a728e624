"""Information on the built-in datasets, without reading a file or importing torch.

Counts, classes and licences are MedMNIST's own (``medmnist.INFO``, version 3.0.2; ``tests/datasets/test_facts.py``
compares the two); what a reader of a score should know besides stands in ``traps``. ``mirror_safe`` says whether a
left-right flip gives another image of the same class *that could occur*: it is false for organs named left and
right, and for chest radiographs, whose heart lies on one side.
"""

from __future__ import annotations

from dataclasses import replace

from bench.registry import DatasetInfo, add_builtin, datasets

_MEDMNIST_PAPER = "Yang et al., MedMNIST v2, Scientific Data 10:41 (2023), doi:10.1038/s41597-022-01721-8"
_RECORD = "https://zenodo.org/records/10519652"
_COMMON_TRAPS = (
    "the 224-pixel rows of the MedMNIST v2 paper are 28-pixel images enlarged by nearest neighbour, not the 224 files",
)
_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
_ORGAN_SOURCE = "Bilic et al., Medical Image Analysis 84:102680 (2023); Xu et al., IEEE TMI 38(8):1885 (2019)"
_KERMANY = "Kermany et al., Cell 172(5):1122 (2018)"


def _medmnist(
    name: str,
    task: str,
    classes: tuple[str, ...],
    channels: int,
    counts: tuple[int, int, int],
    modality: str,
    source_paper: str,
    *,
    mirror_safe: bool,
    traps: tuple[str, ...] = (),
    licence: str = "CC BY 4.0",
    bundled: tuple[int, ...] = (),
    positive: str = "",
) -> None:
    add_builtin(
        DatasetInfo(
            name=name,
            task=task,
            classes=classes,
            channels=channels,
            adapter="bench.datasets.medmnist:MedMNIST",
            sizes=(28, 64, 128, 224),
            bundled=bundled,
            n_train=counts[0],
            n_val=counts[1],
            n_test=counts[2],
            modality=modality,
            summary=f"{modality}: {len(classes)} {'findings' if task == 'multi-label' else 'classes'}",
            licence=licence,
            citation=f"{source_paper}; {_MEDMNIST_PAPER}",
            source=_RECORD,
            groups=("medmnist",),
            mirror_safe=mirror_safe,
            traps=traps + _COMMON_TRAPS,
            positive=positive,
        )
    )


_medmnist(
    "pathmnist",
    "multi-class",
    (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal colon mucosa",
        "cancer-associated stroma",
        "colorectal adenocarcinoma epithelium",
    ),
    3,
    (89_996, 10_004, 7_180),
    "colon histology (H&E)",
    "Kather et al., PLOS Medicine 16(1):e1002730 (2019)",
    mirror_safe=True,
    traps=(
        "the test images come from another clinical centre than train and val",
        "train and val are split by patch; there are no patient ids",
        "colour and JPEG artefacts give classes away: three mean RGB values exceed 50 % accuracy (arXiv 2409.11546)",
    ),
)
_medmnist(
    "chestmnist",
    "multi-label",
    (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    1,
    (78_468, 11_219, 22_433),
    "chest X-ray",
    "Wang et al., ChestX-ray8, CVPR (2017)",
    mirror_safe=False,
    traps=(
        "labels were mined from reports by text matching",
        "predicting no finding at all gives an accuracy of about .947: read the AUC",
    ),
)
_medmnist(
    "dermamnist",
    "multi-class",
    (
        "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma",
        "benign keratosis-like lesions",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevi",
        "vascular lesions",
    ),
    3,
    (7_007, 1_003, 2_005),
    "dermatoscopy",
    "Tschandl et al., HAM10000, Scientific Data 5:180161 (2018)",
    mirror_safe=True,
    traps=(
        "886 of the 2,005 test images show a lesion that is also in train (Abhishek et al., Sci Data 12:196, 2025)",
    ),
    licence="CC BY-NC 4.0",
)
_medmnist(
    "octmnist",
    "multi-class",
    ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    1,
    (97_477, 10_832, 1_000),
    "retinal OCT",
    _KERMANY,
    mirror_safe=True,
    traps=("val is a random tenth of train and mixes patients, so it reads higher than test (Tampu et al., 2022)",),
)
_medmnist(
    "pneumoniamnist",
    "binary-class",
    ("normal", "pneumonia"),
    1,
    (4_708, 524, 624),
    "paediatric chest X-ray",
    _KERMANY,
    mirror_safe=False,
    traps=(
        "pneumonia is 74.2 % of val but 62.5 % of test",
        "8 images at 28 pixels are in train and in val; some 128 and 224 images are enlarged from smaller sources",
    ),
    positive="pneumonia",
)
_medmnist(
    "retinamnist",
    "ordinal-regression",
    ("0", "1", "2", "3", "4"),
    3,
    (1_080, 120, 400),
    "fundus photograph",
    "Liu et al., DeepDRiD, Patterns 3(6):100512 (2022)",
    mirror_safe=True,
    traps=("grades are ordered, but the official score treats them as plain classes",),
)
_medmnist(
    "breastmnist",
    "binary-class",
    ("malignant", "normal, benign"),
    1,
    (546, 78, 156),
    "breast ultrasound",
    "Al-Dhabyani et al., Data in Brief 28:104863 (2020)",
    mirror_safe=True,
    traps=(
        "156 test images (42 malignant): scores of one recipe differ much between seeds",
        "label 1 is normal or benign, label 0 malignant",
    ),
    bundled=(28,),
    positive="malignant",
)
_medmnist(
    "bloodmnist",
    "multi-class",
    (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    3,
    (11_959, 1_712, 3_421),
    "blood cell microscopy",
    "Acevedo et al., Data in Brief 30:105474 (2020)",
    mirror_safe=True,
)
_medmnist(
    "tissuemnist",
    "multi-class",
    (
        "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule",
        "Glomerular endothelial cells",
        "Interstitial endothelial cells",
        "Leukocytes",
        "Podocytes",
        "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    1,
    (165_466, 23_640, 47_280),
    "kidney cortex microscopy",
    "Ljosa et al., Nature Methods 9:637 (2012)",
    mirror_safe=True,
    traps=("the source images are 32 x 32: 64, 128 and 224 are enlarged",),
)
for _view, _plane, _counts in (
    ("a", "axial", (34_561, 6_491, 17_778)),
    ("c", "coronal", (12_975, 2_392, 8_216)),
    ("s", "sagittal", (13_932, 2_452, 8_827)),
):
    _medmnist(
        f"organ{_view}mnist",
        "multi-class",
        _ORGANS,
        1,
        _counts,
        f"abdominal CT ({_plane})",
        _ORGAN_SOURCE,
        mirror_safe=False,
        traps=(
            "organamnist, organcmnist and organsmnist are views of the same CT volumes, not independent evidence",
            "blank images were removed in v2.2.4: published tables used slightly larger files",
        ),
    )


def _phantom(name: str, task: str, classes: tuple[str, ...], summary: str) -> None:
    add_builtin(
        DatasetInfo(
            name=name,
            task=task,
            classes=classes,
            channels=1,
            adapter="bench.datasets.phantoms:Phantom",
            variant="bench.datasets.phantoms:variant",
            least_size=28,
            n_train=1_200,
            n_val=300,
            n_test=1_000,
            modality="synthetic radiograph",
            summary=summary,
            licence="Apache-2.0 (generated by medbench)",
            citation="medbench phantoms, generated by this package",
            source="datasets/phantoms.py",
            groups=("phantoms",),
            mirror_safe=True,
            positive=classes[1] if task == "binary-class" else "",
        )
    )


_TEXTURES = ("granular", "reticular")
_RELATIONS = ("level", "offset")
_phantom("phantom_local", "binary-class", _TEXTURES, "the class is a fine local texture of the lungs")
_phantom("phantom_global", "binary-class", _RELATIONS, "the class is how two far-apart nodules lie to each other")
_phantom(
    "phantom_mixed",
    "multi-class",
    tuple(f"{texture}, {relation}" for texture in _TEXTURES for relation in _RELATIONS),
    "texture and relation together: either alone tells half of it",
)
_phantom("phantom_small", "binary-class", ("clear", "lesion"), "a subtle lesion of known diameter and contrast")

for _name in ("local", "global", "mixed", "small"):
    _twin = datasets[f"phantom_{_name}"]
    add_builtin(
        replace(
            _twin,
            name=f"{_twin.name}_shifted",
            adapter="bench.datasets.phantoms:ShiftedPhantom",
            summary=f"{_twin.name} from another scanner (noise, contrast, scale), for --transfer",
            groups=("phantoms_shifted",),
        )
    )

datasets.alias("all", ("medmnist", "phantoms"))

import bench.datasets._published_info  # noqa: E402, F401  # registers in its turn
