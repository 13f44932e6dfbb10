#include "execute/unit_order.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "execute/merge_gather.h"
#include "execute/merge_index.h"

namespace peft::execution {
namespace {

// Pieces of a tensor follow each other: the index of the last one is kept.
class Groups {
 public:
  explicit Groups(const FileWork& work) : work_(work) {}

  // Of the first matrix that the piece changes.
  std::optional<GatherGroup> of(const Piece& piece) {
    if (work_.making[piece.tensor] != Making::merged) return std::nullopt;
    open(piece.tensor);
    const Rectangle area = area_of(work_, piece);
    const MergedPlace* first = nullptr;
    places_.by_row.find(area.row, area.row + area.rows, [&](std::size_t place) {
      if (first == nullptr) first = &places_.places[place];
    });
    return first == nullptr ? std::nullopt : of(*first);
  }

 private:
  void open(std::size_t t) {
    if (tensor_ == t) return;
    tensor_ = t;
    places_ = MergeIndex(work_.tensor(t));
  }
  std::optional<GatherGroup> of(const MergedPlace& place) const {
    const Update& update = work_.tensor(tensor_).merge->updates[place.updates.front()];
    const std::size_t in_turn = views_in_turn(place.updates.size());
    for (const View* view : {&update.b, &update.a}) {
      if (view->rows == 0 || view->cols == 0) continue;
      if (const auto group = group_of(*work_.plan, *view, in_turn)) return group;
    }
    return std::nullopt;
  }

  const FileWork& work_;
  std::size_t tensor_ = static_cast<std::size_t>(-1);
  MergeIndex places_;
};

bool has_family(const FileWork& work, const Unit& unit) {
  bool has = false;
  for_each_piece(work, unit, [&](const Piece& piece) { has |= work.making[piece.tensor] == Making::member; });
  return has;
}

}  // namespace

void order_units(FileWork& work) {
  if (std::ranges::find(work.making, Making::merged) == work.making.end()) return;  // nothing is gathered
  Groups groups(work);
  std::map<GatherGroup, std::size_t> place_of;  // of the group's first unit
  std::vector<std::pair<std::size_t, Unit>> placed;
  for (const Unit& unit : work.units) {
    std::optional<GatherGroup> group;
    Unit part = unit;
    const auto add = [&] {
      const std::size_t place = placed.size();
      placed.emplace_back(group ? place_of.try_emplace(*group, place).first->second : place, part);
    };
    bool is_first = true;
    if (has_family(work, unit)) {  // its members stay together
      add();
      continue;
    }
    for_each_piece(work, unit, [&](const Piece& piece) {
      const auto next = groups.of(piece);
      if (!is_first && next != group) {
        const std::uint64_t begin = work.layout.begin[piece.tensor] + piece.begin;
        part.end = begin;
        add();
        part.begin = begin, part.end = unit.end;
      }
      group = next;
      is_first = false;
    });
    add();
  }
  std::stable_sort(placed.begin(), placed.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  work.units.clear();
  for (const auto& [place, unit] : placed) work.units.push_back(unit);
}

}  // namespace peft::execution
