// SPDX-License-Identifier: Apache-2.0
#include "check.hpp"

// ---
#include "winnow/winnow.hpp"

/// SphereFormer's block: half of the heads in cubic windows, the other half in spherical ones.
winnow::status attend(const winnow::partition& cubic, const winnow::partition& spherical,
                      winnow::attention_forward_arguments<float> arguments) {
  const int heads = static_cast<int>(arguments.q.shape[1]);
  winnow::head_group<float> groups[2];
  groups[0].heads = heads / 2;
  groups[0].windows = cubic;
  groups[1].heads = heads - heads / 2;
  groups[1].windows = spherical;
  arguments.groups = groups;
  arguments.group_count = 2;
  return winnow::reference::attention_forward<float>(arguments);
}
// ---

int main() {
  constexpr std::int64_t tokens = 40;
  constexpr std::int64_t heads = 3;
  constexpr std::int64_t dim = 8;
  const std::vector<float> xyz = numbers(tokens * 3, 1);
  winnow::point_set points;
  points.coordinates = winnow::tensor_view<const float, 2>(xyz.data(), {tokens, 3});

  winnow::cubic_window cube;
  cube.size = {0.5f, 0.5f, 0.5f};
  const winnow::reference::host_partition cubic(shape_of(cube, tokens));
  check(winnow::reference::build_partition(cube, points, cubic.view()));
  winnow::spherical_window sphere;
  sphere.size = {30.0f, 30.0f, 80.0f};
  sphere.exponential_a = 0.05f;
  const winnow::reference::host_partition spherical(shape_of(sphere, tokens));
  check(winnow::reference::build_partition(sphere, points, spherical.view()));

  // With values of one, every row of the result is one, whatever the windows.
  const std::vector<float> q = numbers(tokens * heads * dim, 2);
  const std::vector<float> v(q.size(), 1.0f);
  std::vector<float> out(q.size());
  winnow::attention_forward_arguments<float> arguments;
  arguments.q = arguments.k = {q.data(), {tokens, heads, dim}};
  arguments.v = {v.data(), {tokens, heads, dim}};
  arguments.out = {out.data(), {tokens, heads, dim}};
  check(attend(cubic.view(), spherical.view(), arguments));
  for (const float value : out) check_near(value, 1.0f, "out: not one");
}
