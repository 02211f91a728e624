"""PAD-UFES-20: smartphone photographs of skin lesions (Pacheco et al., Data in Brief 32:106221, 2020).

The archive holds ``metadata.csv`` and three archives of images, which are read where they lie. There is no official
split; patients have several lesions and lesions several images, so we split by patient.
"""

from __future__ import annotations

from bench.datasets._archives import Tree
from bench.datasets._named import Images, NamedSet, by_name, labels_of, table_named
from bench.datasets.csv_table import read_table


class PadUfes20(NamedSet):
    """Adapter."""

    archive = (
        "zr7vgbcyr2-1.zip from https://data.mendeley.com/datasets/zr7vgbcyr2/1, as it is or unpacked (metadata.csv and "
        "images/imgs_part_1, _2, _3)"
    )
    total = 2_298
    author = (1_384, 227, 687)

    def images(self, tree: Tree) -> Images:
        """Join the table with the images."""
        member = table_named(tree, "metadata.csv", self.archive)
        table = read_table(member.read(), member.path)
        names = table.column("img_id", "of the images")
        kinds = table.column("diagnostic", "of the labels")
        patients = table.column("patient_id", "of the patients")
        table.refuse(kinds, lambda kind: kind not in self.info.classes, "diagnostic is none of the six classes")
        table.refuse(patients, lambda patient: not patient, "no patient is named")
        found = by_name(tree.members)
        table.refuse(names, lambda name: name not in found, f"the image is not there; expected {self.archive}")
        members = tuple(found[name] for name in names)
        return Images(members, tuple(names), labels_of(kinds, self.info.classes), tuple(patients))
