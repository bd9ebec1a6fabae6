"""Members of an ensemble: a configuration is changed by name, and each name is trained, predicted and weighed.

In: the keys `members`, `member_ids` and `ensemble` of params.yaml. Out: the parameters of one member, in which its
changes have taken the place of what the whole file says.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.options import Section, explain_fault

MEMBER = r"^[A-Za-z][A-Za-z0-9_]{0,31}$"
MemberName = Annotated[str, Field(pattern=MEMBER)]
# What differs between members; what all are compared by, and how nuclei are found in their mean, does not.
CHANGEABLE = ("contrast", "unet", "loss", "augment", "train", "size", "predict")


class EnsembleParams(Section):
    """How the predictions of members are averaged."""

    # `greedy` takes members, one again and again if need be, for as long as that scores more out of fold.
    weights: Literal["equal", "greedy"]


class WithMembers(Section):
    """What params.yaml says of members, and its form for one of them."""

    # By name, changes of the configuration: `unet.encoder: resnet34` of a key, `unet: {...}` of a whole section.
    members: dict[MemberName, dict[str, Any]]
    member_ids: Annotated[tuple[MemberName, ...], Field(min_length=1)]  # those that run
    ensemble: EnsembleParams

    def of_member(self, name: str) -> Self:
        """Return the parameters of a member, who is then the only one.

        Raises:
            InputError: there is no such member.
            ValueError: its changes are of what no member may change, or out of bounds.
        """
        if name not in self.members:
            raise InputError(f"no member is called {name}; `members` has {', '.join(self.members)}")
        content = self.model_dump() | {"members": {name: {}}, "member_ids": (name,)}
        changes = self.members[name]
        if twice := [key for key in changes if "." in key and key.split(".")[0] in changes]:
            raise ValueError(f"{twice[0]}: {twice[0].split('.')[0]} is given as a whole too; put the key in there")
        for key, value in changes.items():
            _change(content, key.split("."), value, key)
        return type(self).model_validate(content)

    @property
    def of_members(self) -> dict[str, Self]:
        """The parameters of each member that runs, by name."""
        return {name: self.of_member(name) for name in self.member_ids}

    @property
    def known_px(self) -> dict[str, float]:
        """The size of nuclei that each member that runs knows; see `size.object_diameter_px`."""
        members: dict[str, Any] = self.of_members
        return {name: member.size.object_diameter_px for name, member in members.items()}

    @model_validator(mode="after")
    def _members_are_sound(self) -> Self:
        if len({*self.member_ids}) < len(self.member_ids):
            raise ValueError(f"member_ids: {', '.join(self.member_ids)}: each may be named once")
        if missing := [name for name in self.member_ids if name not in self.members]:
            raise ValueError(f"member_ids: {missing[0]} is none of `members`, which has {', '.join(self.members)}")
        for name in [name for name, changes in self.members.items() if changes]:
            try:
                self._check_alike(self.of_member(name))
            except ValidationError as error:
                raise ValueError(f"members.{name}: {explain_fault(error, '')}") from error
            except ValueError as error:
                raise ValueError(f"members.{name}: {error}") from error
        return self

    def _check_alike(self, other: Any) -> None:
        """Refuse a member whose predictions cannot be averaged with others', zoom by zoom."""
        own: Any = self
        if own.predict.scales != other.predict.scales:
            raise ValueError(
                f"predict.scales are {other.predict.scales} and not {own.predict.scales}, as of all members"
            )


def _change(content: dict[str, Any], words: list[str], value: Any, key: str) -> None:
    """Put a value where a dotted key points to, in the changeable sections of params.yaml's content."""
    if words[0] not in CHANGEABLE:
        raise ValueError(f"{key}: members may differ in {', '.join(CHANGEABLE)} alone")
    *sections, last = words
    for word in sections:
        if not isinstance(content.get(word), Mapping):
            raise ValueError(f"{key}: there is no {word}")
        content = content[word]
    if last not in content:
        raise ValueError(f"{key}: no such key; {'.'.join(sections)} has {', '.join(content)}")
    if not sections and not isinstance(value, Mapping):
        raise ValueError(f"{key}: give all of the section, or one key as `{key}.KEY`")
    content[last] = deepcopy(value)
