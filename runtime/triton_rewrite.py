"""Rewrites jit functions so that plain Python runs them on tiles: what Triton's compiler does with statements, done by calls to hooks.

Assigned numbers become tiles, tests of scalar tiles become bools, `and`, `or` and `not` become tile operations. Knows no tile.
"""

from __future__ import annotations

import ast

from tilewright.ir.errors import EngineError

TILE, TRUTH, AND, OR, NOT = "_tw_tile", "_tw_truth", "_tw_and", "_tw_or", "_tw_not"  # hooks that the globals must hold


def rewrite_module(source: str, filename: str) -> ast.Module:
    """The whole module, its jit functions rewritten and without decorators."""
    tree = ast.parse(source, filename)
    tree.body = [_rewrite_function(node, filename) if _is_jit(node) else node for node in tree.body]
    return ast.fix_missing_locations(tree)


def rewrite_library(source: str, filename: str) -> ast.Module:
    """Only the jit functions of a module, rewritten: the rest of the library is used as it is."""
    tree = ast.parse(source, filename)
    tree.body = [_rewrite_function(node, filename) for node in tree.body if _is_jit(node)]
    future = ast.ImportFrom(module="__future__", names=[ast.alias(name="annotations")], level=0)
    tree.body.insert(0, future)
    return ast.fix_missing_locations(tree)


def _is_jit(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and any(_last_name(decorator) == "jit" for decorator in node.decorator_list)


def _last_name(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _rewrite_function(node: ast.stmt, filename: str) -> ast.FunctionDef:
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list = []
    rewriter = _Rewriter(filename)
    node.body = [rewriter.visit(statement) for statement in node.body]
    return node


class _Rewriter(ast.NodeTransformer):
    def __init__(self, filename: str) -> None:
        self.filename = filename

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        node.value = _call(TILE, node.value)
        return node

    def _visit_test(self, node: ast.If | ast.While | ast.IfExp | ast.Assert) -> ast.AST:
        self.generic_visit(node)
        node.test = _call(TRUTH, node.test)
        return node

    visit_If = visit_While = visit_IfExp = visit_Assert = _visit_test

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        hook = AND if isinstance(node.op, ast.And) else OR
        result = node.values[0]
        for value in node.values[1:]:
            no_arguments = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
            result = _call(hook, result, ast.Lambda(args=no_arguments, body=value))
        return ast.copy_location(result, node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return _call(NOT, node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1:
            where = f"{self.filename}:{node.lineno}:{node.col_offset + 1}"
            raise EngineError(where, f"chained comparison {ast.unparse(node)!r}, which Triton 3.6 does not compile", "split it with &")
        return node


def _call(hook: str, *operands: ast.expr) -> ast.expr:
    call = ast.Call(func=ast.Name(id=hook, ctx=ast.Load()), args=list(operands), keywords=[])
    return ast.copy_location(call, operands[0])
