"""How good files are made bad: bytes damaged at random, and structures forged with their checksums mended.

In: a seeded generator and good bytes. Out: bad bytes; nothing here reads or judges them.
"""

import hashlib
import io
import random
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.images.archive import index_archive, open_archive, read_entry
from pipeline.images.raw import decode_image, to_rgb
from pipeline.images.store import PackWriter
from pipeline.images.table import TABLE_COLUMNS

_ODD_BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
_ODD_SIZES = (0, 1, 255, 1000, 1001, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_TEXT_TOKENS = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b'"',
        b'""',
        b",",
        b",,",
        b" ",
        b"\t",
        b";",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
    ),
    *(
        b"-1",
        b"0",
        b"1",
        b"1.5",
        b"1e308",
        b"1e999",
        b"nan",
        b"inf",
        b"NA",
        b"True",
        b"'",
        b"=1+1",
        b"9" * 18,
        b"9" * 20,
    ),
    *(b"9" * 5000, b"2147483647", b"46340", b"100000", "٣".encode(), "²".encode(), "é".encode(), "e\u0301".encode()),
    *("\u2028".encode(), "\x85".encode(), b"../../x", b"/etc/passwd", b"Ignored", b"x" * 70_000),
]
_YAML_TOKENS = [
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"[",
        b"]",
        b"{",
        b"}",
        b": ",
        b"- ",
        b"? ",
        b"!!int ",
        b"!!int ''",
        b"!!bool x",
        b"!!float x",
    ),
    *(b"!!timestamp x", b"2001-99-99", b"!!binary x", b"!!python/object/apply:os.system ['true']", b"!!set {a}", b"~"),
    *(
        b"0x" + b"f" * 5000,
        b"9" * 5000,
        b"1:" * 400 + b"1",
        b"1e999",
        b".inf",
        b".nan",
        b"'\\0'",
        b'"\\0"',
        b'"\\ud800"',
    ),
    *(
        b"[" * 2000,
        b"{a: " * 500,
        b"- " * 3000,
        b"|",
        b">",
        b"%YAML 9.9\n",
        b"---\n",
        b"...\n",
        b"#",
        b"1_000",
        b"0o17",
    ),
    *(b"[[1, 2], [3]]", b"!!omap [a: 1]", b"!!pairs [a: 1]", b"!!str", b"!!null ", b"10000000000000000000000"),
]


@dataclass(frozen=True)
class Seeds:
    """Good files, small ones."""

    archive: bytes  # a zip of three images with their masks
    entries: dict[str, bytes]  # the same, unpacked
    image_digests: frozenset[str]  # of its images as they are prepared
    images: dict[str, bytes]  # PNG, JPEG and other files
    pixels: dict[str, Any]  # what the PNGs decode to
    submission: bytes
    solution: bytes
    folds: bytes
    table: bytes
    scores: bytes
    params: bytes
    pack: bytes


def digest(array: np.ndarray) -> str:
    """Return a digest of an array's shape and bytes."""
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def load_seeds(root: Path, home: Path) -> Seeds:
    """Make the good files from the sample and params.yaml of the checkout at `root`, in memory (and `home`)."""
    entries, digests = {}, set()
    with open_archive(root / "data" / "sample" / "stage1_train.zip") as archive:
        images = index_archive(archive, labelled=True, allow_unlabelled=False)
        images.sort(key=lambda i: (sum(archive.getinfo(m).file_size for m in (i.image_entry, *i.mask_entries)), i))
        for image in images[:3]:
            for entry in (image.image_entry, *image.mask_entries[:4]):
                name = entry if entry != image.image_entry else f"{image.image_id}/images/{image.image_id}.png"
                entries[name.replace(image.image_id, image.image_id[:6])] = _shrink(read_entry(archive, entry, 10**7))
    digests = {digest(to_rgb(decode_image(data, "x", 10**7))) for name, data in entries.items() if "/images/" in name}
    rgba = decode_image(next(iter(entries.values())), "x", 10**7)
    files = _make_images(rgba)
    with PackWriter(home / "seed.npz") as pack:
        pack.add("a.image", rgba[:8, :9, :3])
        pack.add("a.label_map", np.arange(72, dtype=np.uint16).reshape(8, 9))
        pack.add("é", np.zeros((0, 4), np.float32))
        pack.add("fortran", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    rows = [f"image{i},{['ab', 'cd', 'ef'][i // 2]},t/0,{i // 2}" for i in range(6)]
    tables = [f"00{i},dsb2018,1,1.0,20,30,{i},{i * 2.5},fluorescence,0,0,0,0,0,0" for i in range(4)]
    scores = [f"00{i},g{i},{i % 2},fluorescence,0.{i}" + ",0.5" * 10 for i in range(4)]
    levels = ",".join(f"ap{percent}" for percent in range(50, 100, 5))
    return Seeds(
        archive=make_zip(entries),
        entries=entries,
        image_digests=frozenset(digests),
        images=files,
        pixels={name: decode_image(data, name, 10**7) for name, data in files.items() if name.startswith("png")},
        submission=b"ImageId,EncodedPixels\na,1 2 4 1\na,5 3 12 1\nb,\nc,1 4\n",
        solution=(
            b"ImageId,EncodedPixels,Height,Width,Usage\na,1 2,3,4,Private\na,5 3 9 2,3,4,Private\n"
            b"b,1 30,6,5,Public\nd,1 1,2,2,Ignored\nc,,2,2,Private\n"
        ),
        folds="\n".join(["image_id,group,stratum,fold", *rows, ""]).encode(),
        table="\n".join(
            [
                ",".join(TABLE_COLUMNS),
                *tables,
                "",
            ]
        ).encode(),
        scores="\n".join([f"image_id,group,fold,image_type,ap,{levels}", *scores, ""]).encode(),
        params=(root / "params.yaml").read_bytes(),
        pack=(home / "seed.npz").read_bytes(),
    )


def _shrink(data: bytes) -> bytes:
    """Cut an image file to its first 48 x 48 px: thousands of cases are to be quick."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.imencode(".png", array[:48, :48])[1].tobytes()


def _make_images(rgba: np.ndarray) -> dict[str, bytes]:
    def save(image: Image.Image, form: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        return stream.getvalue()

    rgb = Image.fromarray(np.ascontiguousarray(rgba[..., :3]))
    grey = rgb.convert("L")
    return {
        "png rgba": save(Image.fromarray(rgba), "PNG"),
        "png rgb": save(rgb, "PNG"),
        "png grey": save(grey, "PNG"),
        "png palette": save(rgb.quantize(7), "PNG"),
        "png one bit": save(grey.convert("1"), "PNG"),
        "png 16 bits": cv2.imencode(".png", np.asarray(grey).astype(np.uint16) * 200)[1].tobytes(),
        "png mask": save(Image.fromarray((np.asarray(grey) > 60).astype(np.uint8) * 255), "PNG"),
        "jpeg rgb": save(rgb, "JPEG"),
        "jpeg grey": save(grey, "JPEG"),
        "jpeg progressive": save(rgb, "JPEG", progressive=True),
        "jpeg cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "bmp": save(rgb, "BMP"),
        "gif": save(rgb, "GIF"),
        "tiff": save(rgb, "TIFF"),
        "webp": save(rgb, "WEBP"),
    }


def make_zip(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of the entries, all of one date."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def damage(rng: random.Random, data: bytes, first: int = 0) -> bytes:
    """Damage bytes from the place `first` on: flipped, set, cut, doubled, moved, grown."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if len(content) <= first:
            break
        place = rng.randrange(first, len(content))
        length = rng.choice((1, 2, 4, 8, 30, 100))
        match rng.randrange(9):
            case 0:
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place] = rng.choice(_ODD_BYTES)
            case 2:
                content[place] = rng.randrange(256)
            case 3:
                content[place : place + 4] = rng.choice(_ODD_SIZES).to_bytes(4, rng.choice(("little", "big")))
            case 4:
                del content[place : place + length]
            case 5:
                content[place:place] = content[place : place + length]
            case 6:
                content[place:place] = rng.randbytes(length)
            case 7:
                other = rng.randrange(first, len(content))
                content[place : place + length] = content[other : other + length]
            case 8:
                if rng.random() < 0.3:
                    del content[place:]
                else:
                    content[place : place + 8] = b"\xff" * 8
    return bytes(content)


def damage_text(rng: random.Random, data: bytes, tokens: list[bytes] = _TEXT_TOKENS) -> bytes:
    """Damage a text: bytes at random, tokens put in or put for a field, lines dropped, doubled or swapped."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        lines = data.split(b"\n")
        line = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                data = damage(rng, data)
            case 1:
                place = rng.randrange(len(data) + 1)
                data = data[:place] + rng.choice(tokens) + data[place:]
            case 2 | 3:
                separator = rng.choice((b",", b" "))
                fields = lines[line].split(separator)
                fields[rng.randrange(len(fields))] = rng.choice(tokens)
                lines[line] = separator.join(fields)
                data = b"\n".join(lines)
            case 4:
                lines.insert(rng.randrange(len(lines)), lines[line] if rng.random() < 0.5 else lines.pop(line))
                data = b"\n".join(lines)
            case 5:
                data = data.replace(*rng.choice(((b"\n", b"\r\n"), (b"\n", b"\r"), (b",", b";"), (b",", b', "'))))
    return data


def damage_yaml(rng: random.Random, data: bytes) -> bytes:
    """Damage a YAML file; a value is often one that some part of YAML's types chokes on, or a bomb."""
    if rng.random() < 0.03:
        return rng.choice(list(_yaml_bombs().values())) + data
    if rng.random() < 0.5:
        lines = data.split(b"\n")
        line = rng.randrange(len(lines))
        lines[line] = lines[line].split(b":")[0] + b": " + rng.choice(_YAML_TOKENS)
        return b"\n".join(lines)
    return damage_text(rng, data, _YAML_TOKENS)


def _yaml_bombs() -> dict[str, bytes]:
    """Return texts of some hundred bytes whose meaning has 10 ** 9 parts and more, or a thousand depths."""
    merge = b"m0: &m0 {x: 1}\n"
    alias = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 12):
        merge += b"m%d: &m%d {<<: [%s]}\n" % (i, i, b", ".join([b"*m%d" % (i - 1)] * 10))
        alias += b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10))
    return {"merge": merge, "alias": alias, "deep": b"d: " + b"[" * 5000 + b"]" * 5000 + b"\n", "own": b"o: &o [*o]\n"}


def _split_png(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def _join_png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(kind + content))]
    return b"".join(parts)


def forge_png(rng: random.Random, data: bytes) -> bytes:
    """Forge a PNG whose checksums are right: absurd headers, bombs, chunks doubled, dropped, swapped, damaged."""
    chunks = _split_png(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not chunks:
            break
        place = rng.randrange(len(chunks))
        kind, content = chunks[place]
        match rng.randrange(9):
            case 0:
                width, height = rng.choice(_ODD_SIZES), rng.choice(_ODD_SIZES)
                chunks[0] = (chunks[0][0], struct.pack(">II", width, height) + chunks[0][1][8:])
            case 1:
                header = bytearray(chunks[0][1])
                if len(header) == 13:
                    header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
                chunks[0] = (chunks[0][0], bytes(header))
            case 2:
                chunks.insert(rng.randrange(len(chunks) + 1), chunks[place])
            case 3 if len(chunks) > 1:
                chunks.pop(place)
            case 4:
                other = rng.randrange(len(chunks))
                chunks[place], chunks[other] = chunks[other], chunks[place]
            case 5:
                bomb = zlib.compress(bytes(10**6), 1)
                ancillary = ((b"zTXt", b"k\0\0" + bomb), (b"iCCP", b"k\0\0" + bomb), (b"iTXt", b"k\0\1\0\0\0" + bomb))
                others = ((b"tEXt", bytes(10**5)), (b"prVt", bytes(10**5)), (b"eXIf", b"II*\0" + b"\xff" * 20))
                chunks.insert(rng.randrange(1, len(chunks) + 1), rng.choice(ancillary + others))
            case 6:
                chunks = [c for c in chunks if c[0] != b"IDAT"]
                chunks.insert(
                    rng.randrange(1, len(chunks) + 1) if chunks else 0, (b"IDAT", zlib.compress(bytes(10**6)))
                )
            case 7:
                chunks[place] = (kind, damage(rng, content))
            case 8:
                width, height = rng.choice(_ODD_SIZES), rng.choice(_ODD_SIZES)
                frame = struct.pack(">IIIIIHHBB", 0, width, height, rng.choice((0, 1, 2**31)), 0, 1, 1, 0, 0)
                chunks[1:1] = [(b"acTL", struct.pack(">II", rng.choice(_ODD_SIZES), 0)), (b"fcTL", frame)]
    return _join_png(chunks) + rng.choice((b"", b"", bytes(50), b"trailing"))


def forge_jpeg(rng: random.Random, data: bytes) -> bytes:
    """Forge a JPEG: absurd sizes in its frame header, frames and scans doubled, segments of absurd lengths."""
    frame = next(i for i in range(len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2))
    scan = data.index(b"\xff\xda")
    size = struct.pack(">HH", *(min(rng.choice(_ODD_SIZES), 2**16 - 1) for _ in range(2)))
    match rng.randrange(5):
        case 0:
            return data[: frame + 5] + size + data[frame + 9 :]
        case 1:
            return data[:frame] + data[frame : frame + 5] + size + data[frame + 9 : scan] + data[frame:]
        case 2:
            return data[:-2] + data[scan:-2] * rng.choice((2, 50, 2000)) + data[-2:]
        case 3:
            extra = b"\xff" + bytes([rng.choice((0xE0, 0xE1, 0xFE, 0xDB, 0xC4, 0xD0, 0x01, 0xFF))]) + size[:2]
            return data[:2] + extra + data[2:]
        case _:
            return data[:frame] + damage(rng, data[frame:])


def damage_zip(rng: random.Random, data: bytes) -> bytes:
    """Damage a zip's bytes; half of the time in its headers, where the damage tells."""
    if rng.random() < 0.5:
        return damage(rng, data)
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        mark, size = rng.choice(((b"PK\3\4", 30), (b"PK\1\2", 46), (b"PK\5\6", 22)))
        places = [i for i in range(len(content) - size + 1) if content[i : i + 4] == mark]
        if not places:
            continue
        place = rng.choice(places) + rng.randrange(4, size)
        count = rng.choice((1, 2, 4))
        value = rng.choice((rng.choice(_ODD_SIZES), rng.randrange(len(data))))
        content[place : place + count] = (value % 256**count).to_bytes(count, "little")
    return bytes(content)


_ODD_NAMES = [
    *(
        "../x/images/x.png",
        "x/../../x/images/x.png",
        "/tmp/fuzz/images/x.png",
        "..\\x\\images\\x.png",
        "C:/x/images/x.png",
    ),
    *(
        "./x/images/x.png",
        "x//images/x.png",
        "x/images/../images/x.png",
        "\0/images/x.png",
        "x/images/x\0.png",
        "~/images/x.png",
    ),
    *(
        "a b/images/x.png",
        " /images/x.png",
        ",/images/x.png",
        '"/images/x.png',
        "x\n/images/x.png",
        "\u2028/images/x.png",
    ),
    *(
        "é/images/x.png",
        unicodedata.normalize("NFD", "é/images/x.png"),
        "İ/images/x.png",
        "ß/images/x.png",
        "SS/images/x.png",
    ),
    *(
        "X/IMAGES/X.PNG",
        "x/images/x.png",
        "x/images/y.png",
        "x/masks/",
        "x/images/",
        "n" * 300 + "/images/x.png",
        "images/x.png",
    ),
    *(
        "x/images/x.exe",
        "x/masks/m.png",
        "__MACOSX/x/images/x.png",
        "x/images/.png",
        ".png",
        "/",
        "",
        ".",
        "..",
        "CON/images/x.png",
    ),
    *(
        "d" * 60_000,
        "a/" * 30_000 + "x/images/x.png",
        "=1/images/x.png",
        "NA/images/x.png",
        "007/images/x.png",
        "\u202e/images/x.png",
    ),
]


def forge_zip(rng: random.Random, seeds: Seeds) -> bytes:
    """Forge a whole zip with names, contents and attributes that an honest one never has."""
    items = list(seeds.entries.items())
    attributes: dict[int, int] = {}
    for _ in range(rng.choice((1, 1, 2))):
        place, other = rng.randrange(len(items)), rng.randrange(len(items))
        match rng.randrange(9):
            case 0:
                items.insert(place, (rng.choice(_ODD_NAMES), items[other][1]))
            case 1:
                items[place] = (rng.choice(_ODD_NAMES), items[place][1])
            case 2:
                items[place], items[other] = (items[place][0], items[other][1]), (items[other][0], items[place][1])
            case 3:
                change = rng.choice((str.upper, str.title, lambda n: unicodedata.normalize("NFD", n), str))
                items.append((change(items[place][0]), items[other][1]))
            case 4:
                attributes[place] = (rng.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR)) | 0o777) << 16
            case 5:
                items[place] = (items[place][0], forge_png(rng, items[place][1]))
            case 6:
                items[place] = (items[place][0], rng.choice(list(seeds.images.values())))
            case 7:
                items[place] = (items[place][0], bytes(rng.choice((0, 100, 10**7))))
            case 8:
                items += [(f"{i}/images/x.png", b"") for i in range(rng.choice((10, 1000)))]
    stream = io.BytesIO()
    method = rng.choice([zipfile.ZIP_DEFLATED] * 5 + [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.NameToInfo = _Forgetful()  # it warns of names that come twice
        for i, (name, content) in enumerate(items):
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr = name, attributes.get(i, 0)
            info.compress_type = method
            archive.writestr(info, content)
        if rng.random() < 0.1:
            archive.comment = rng.choice((b"PK\5\6" + bytes(18), b"x" * 65535, make_zip({"a/images/a.png": b""})))
    data = stream.getvalue()
    match rng.randrange(12):
        case 0:
            return rng.choice((b"MZ" * 100, data)) + data
        case 1:
            return data + rng.choice((b"x", bytes(70_000), data))
        case 2:  # sizes that lie, alike in every header
            place = data.rfind(b"PK\1\2", 0, rng.randrange(len(data)) + 4)
            if place >= 0:
                size = struct.pack("<I", rng.choice(_ODD_SIZES))
                field = place + rng.choice((20, 24, 42))
                return data[:field] + size + data[field + 4 :]
    return data


class _Forgetful(dict[str, zipfile.ZipInfo]):
    def __contains__(self, key: object) -> bool:
        return False


_NPY_HEADERS = [
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (9999999999999999999999999,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (-2, -3), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (True, 1), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (5,), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (5,), }",
    "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': ('<u2', (9999999999,)), 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': " + "(" * 90 + ")" * 90 + ", }",
    "{'descr': '<u2', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }",
    "{'descr': '<u2', 'fortran_order': 1, 'shape': 5}",
    "[]",
    "__import__('os').system('true')",
]


def damage_pack(rng: random.Random, data: bytes) -> bytes:
    """Damage a pack's bytes, or give an array of it another header."""
    if rng.random() < 0.6:
        return damage_zip(rng, data)
    header = rng.choice(_NPY_HEADERS).encode("latin-1") + b"\n"
    version = rng.choice((1, 1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    entry = b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(rng.choice((0, 12, 100)))
    return make_zip({"a.npy": entry, rng.choice(("a.npy2", "b.npy", "b")): b""}, zipfile.ZIP_STORED)
