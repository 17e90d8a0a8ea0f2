// What Python's operators, builtins and classes mean, for the code that zoo/site/explorer/translate.py writes.
//
//   int    number           float  number, a whole one Whole   str   string   None   null   list   Array
//   tuple  Array as Tuple   dict   Map                         set   Set      class  PyClass
// A whole float is what arithmetic makes of it afterwards: a number without a point.
// Dicts and sets hold names, numbers and null as keys; a tuple is a key by identity only.

export class Tuple extends Array {
  static get [Symbol.species]() { return Array; }
}
export const tuple = (items) => Object.setPrototypeOf([...items], Tuple.prototype);

// 1.0, which prints otherwise than 1 and is no int.
export class Whole extends Number {}
export const whole = (value) => new Whole(value);
const bare = (value) => value instanceof Whole ? value.valueOf() : value;

class Keywords {
  constructor(pairs) { this.map = new Map(pairs); }
}
export const keywords = (pairs) => new Keywords(pairs);

// -- classes -------------------------------------------------------------------------------------------------------

export class PyClass {
  constructor(name, bases, build = null) {
    this.name = name;
    this.bases = bases;
    this.own = new Map();
    this.annotations = new Map();
    this.build = build;
    this.mro = linearised(this);
    this.cached = new Map();
  }

  // The member that an instance of this class finds under a name, undefined for none.
  find(name) {
    if (!this.cached.has(name)) {
      const owner = this.mro.find((one) => one.own.has(name));
      this.cached.set(name, owner === undefined ? undefined : owner.own.get(name));
    }
    return this.cached.get(name);
  }

  put(name, value) {
    this.own.set(name, value);
    for (const one of this.family ?? [this]) one.cached.clear();
    this.cached.clear();
  }
}

// Python's order of bases (C3).
function linearised(cls) {
  const lists = [...cls.bases.map((base) => [...base.mro]), [...cls.bases]];
  const order = [cls];
  while (lists.some((list) => list.length)) {
    const heads = lists.filter((list) => list.length).map((list) => list[0]);
    const next = heads.find((head) => !lists.some((list) => list.indexOf(head) > 0));
    if (next === undefined) throw new TypeError(`no order of bases for ${cls.name}`);
    order.push(next);
    for (const list of lists) if (list[0] === next) list.shift();
  }
  return order;
}

export class Instance {
  constructor(cls) {
    this.cls = cls;
    this.dict = new Map();
  }
}

class Bound {
  constructor(wrapped) { this.wrapped = wrapped; }
}
class ClassMethod extends Bound {}
class StaticMethod extends Bound {}
export class Property {
  constructor(get, set = null) {
    this.get = get;
    this.set = set;
  }
}

const builtin = (name, build, ...bases) => new PyClass(name, bases, build);
export const object = builtin("object", () => new Instance(object));
object.own.set("__setattr__", (self, name, value) => plainSetattr(self, name, value));
const type_ = builtin("type", (value) => typeOf(value), object);
const int = builtin("int", (value = 0) => Math.trunc(Number(value)), object);
const bool = builtin("bool", (value = false) => truth(value), int);
const float = builtin("float", (value = 0) => Number(value), object);
const str = builtin("str", (value = "") => text(value), object);
const list = builtin("list", (items = []) => [...iter(items)], object);
const tupleType = builtin("tuple", (items = []) => tuple(iter(items)), object);
const dictType = builtin("dict", (given = [], more = null) => {
  const pairs = given instanceof Keywords ? [] : given instanceof Map ? [...given] : [...iter(given)].map((one) => [...one]);
  const named = given instanceof Keywords ? given : more;
  return new Map([...pairs, ...(named ? named.map : [])]);
}, object);
const setType = builtin("set", (items = []) => set(iter(items)), object);
const none = builtin("NoneType", () => null, object);
const functionType = builtin("function", null, object);

const exceptions = {};
function exception(name, base) {
  const cls = builtin(name, (...args) => made(cls, args), base);
  exceptions[name] = cls;
  return cls;
}
export const Exception_ = exception("Exception", object);
const ValueError = exception("ValueError", Exception_);
const TypeError_ = exception("TypeError", Exception_);
const KeyError = exception("KeyError", exception("LookupError", Exception_));
const IndexError = exception("IndexError", exceptions.LookupError);
const AttributeError = exception("AttributeError", Exception_);
const StopIteration = exception("StopIteration", Exception_);
function made(cls, args) {
  const error = new Instance(cls);
  error.trace = new Error(cls.name).stack;
  error.dict.set("args", tuple(args)).set("__cause__", null);
  return error;
}
Exception_.own.set("__init__", def("__init__", { plain: ["self"], rest: "args", only: [], keywords: null, defaults: {} },
  (self, args) => { self.dict.set("args", tuple(args)); return null; }));

function raise(error, cause = null) {
  const thrown = error instanceof PyClass ? call(error) : error;
  if (cause !== null) thrown.dict.set("__cause__", cause);
  throw thrown;
}
export { raise };
const fail = (cls, message) => raise(made(cls, [message]));
export const caughtBy = (error, kinds) => error instanceof Instance
  && [...kinds].flat().some((kind) => error.cls.mro.includes(kind));

export function makeClass(name, bases, fill) {
  const cls = new PyClass(name, bases.length ? bases : [object]);
  const current = { cls };
  fill(cls.own, cls.annotations, current);
  cls.own.set("__annotations__", cls.annotations);
  for (const base of cls.mro) (base.family ??= new Set([base])).add(cls);
  const hook = cls.mro.slice(1).find((base) => base.whenSubclassed)?.whenSubclassed;
  if (hook) hook(cls);
  return cls;
}

export function typeOf(value) {
  if (value === null) return none;
  if (value instanceof Instance) return value.cls;
  if (value instanceof Whole) return float;
  if (Array.isArray(value)) return value.cls ?? (value instanceof Tuple ? tupleType : list);
  if (value instanceof Map) return dictType;
  if (value instanceof Set) return setType;
  if (value instanceof PyClass) return type_;
  if (typeof value === "number") return Number.isInteger(value) ? int : float;
  if (typeof value === "boolean") return bool;
  if (typeof value === "string") return str;
  return functionType;
}

function isinstance(value, kinds) {
  if (kinds instanceof Union) return kinds.args.some((one) => isinstance(value, one ?? none));
  if (Array.isArray(kinds)) return kinds.some((one) => isinstance(value, one));
  if (kinds === null) return value === null;
  return typeOf(value).mro.includes(kinds);
}

// -- types of fields -----------------------------------------------------------------------------------------------

export class Union {
  constructor(args) { this.args = args; }
}
export class Generic {
  constructor(origin, args) {
    this.origin = origin;
    this.args = args;
  }
}
const isType = (value) => value instanceof PyClass || value instanceof Union || value instanceof Generic;
const flat = (value) => value instanceof Union ? value.args : [value];
export function typeName(type) {
  if (type === null) return "None";
  if (type instanceof Union) return type.args.map(typeName).join(" | ");
  if (type instanceof Generic) return `${type.origin.name}[${type.args.map(typeName).join(", ")}]`;
  return type.name;
}

// -- functions and calls -------------------------------------------------------------------------------------------

export function def(name, how, body) {
  const { plain, rest, only, keywords: more, defaults } = how;
  const simple = rest === null && more === null && only.length === 0;
  const made = (...given) => {
    const named = given.at(-1) instanceof Keywords ? given.pop().map : null;
    if (named === null && simple && given.length === plain.length) return body(...given);
    const left = new Map(named ?? []);
    const bound = plain.map((key, place) => {
      if (place < given.length) return given[place];
      return taken(left, key, defaults, name);
    });
    if (rest !== null) bound.push(tuple(given.slice(plain.length)));
    else if (given.length > plain.length) fail(TypeError_, `${name}() takes ${plain.length} arguments, got ${given.length}`);
    bound.push(...only.map((key) => taken(left, key, defaults, name)));
    if (more !== null) bound.push(left);
    else if (left.size) fail(TypeError_, `${name}() got an unexpected keyword argument '${[...left.keys()][0]}'`);
    return body(...bound);
  };
  made.title = name;
  return made;
}

function taken(left, key, defaults, name) {
  if (left.has(key)) {
    const value = left.get(key);
    left.delete(key);
    return value;
  }
  if (!(key in defaults)) fail(TypeError_, `${name}() missing argument '${key}'`);
  return defaults[key];
}

export function call(callee, ...given) {
  if (typeof callee === "function") return callee(...given);
  if (callee instanceof PyClass) return create(callee, given);
  if (callee instanceof Instance) return call(attr(callee, "__call__"), ...given);
  return fail(TypeError_, `${repr(callee)} is not callable`);
}

function create(cls, given) {
  if (cls.build) return cls.build(...given);
  if (cls.mro.includes(list)) {
    const made = [...iter(given[0] ?? [])];
    Object.defineProperty(made, "cls", { value: cls });
    return made;
  }
  const made = new Instance(cls);
  if (cls.mro.includes(Exception_)) made.dict.set("args", tuple(given)).set("__cause__", null);
  const init = cls.find("__init__");
  if (init) init(made, ...given);
  else if (cls.dataclass) cls.dataclass(made, given);
  return made;
}

const super_ = (cls, self) => new Super(cls, self);
class Super {
  constructor(cls, self) {
    this.cls = cls;
    this.self = self;
  }
}
export { super_ as super };

// -- attributes ----------------------------------------------------------------------------------------------------

const boundTo = (member, self) => {
  if (member instanceof StaticMethod) return member.wrapped;
  if (member instanceof ClassMethod) return (...given) => member.wrapped(self instanceof PyClass ? self : typeOf(self), ...given);
  if (typeof member === "function" && !(self instanceof PyClass)) return (...given) => member(self, ...given);
  return member;
};

// The attribute, undefined for none.
function found(holder, asked) {
  if (holder instanceof Instance) {
    // transformers' other names of a field.
    const name = holder.cls.find("attribute_map")?.get(asked) ?? asked;
    const member = holder.cls.find(name);
    if (member instanceof Property) return member.get(holder);
    if (holder.dict.has(name)) return holder.dict.get(name);
    if (member !== undefined) return boundTo(member, holder);
    return { __class__: holder.cls, __dict__: holder.dict }[name];
  }
  const name = asked;
  if (holder instanceof PyClass) {
    const member = holder.find(name);
    if (member !== undefined) return boundTo(member, holder);
    if (name === "fromkeys" && holder === dictType) return fromkeys;
    if (name === "__new__") return (cls) => new Instance(cls);
    if (name === "__dataclass_fields__") return holder.fields;
    return { __name__: holder.name, __mro__: holder.mro, __doc__: null, __module__: "configuration_zoo" }[name];
  }
  if (holder instanceof Super) {
    const order = (holder.self instanceof PyClass ? holder.self : typeOf(holder.self)).mro;
    for (const one of order.slice(order.indexOf(holder.cls.cls ?? holder.cls) + 1)) {
      if (one.own.has(name)) {
        const member = one.own.get(name);
        return member instanceof Property ? member.get(holder.self) : boundTo(member, holder.self);
      }
    }
    return undefined;
  }
  if (typeof holder === "string") return methodOf(STRING, holder, name);
  if (Array.isArray(holder)) {
    const member = holder.cls?.find(name);
    return member !== undefined ? boundTo(member, holder) : methodOf(LIST, holder, name);
  }
  if (holder instanceof Map) return methodOf(DICT, holder, name);
  if (holder instanceof Set) return methodOf(SET, holder, name);
  if (holder instanceof Property) return name === "fset" ? holder.set : name === "setter" ? undefined : undefined;
  if (typeof holder === "function" && name === "__name__") return holder.title;
  if (holder !== null && typeof holder === "object") return holder[name];
  return undefined;
}
const methodOf = (table, holder, name) => table[name] && ((...given) => table[name](holder, ...given));

export function attr(holder, name) {
  const value = found(holder, name);
  if (value !== undefined) return value;
  return fail(AttributeError, `'${typeOf(holder).name}' object has no attribute '${name}'`);
}

export function setattr(holder, name, value) {
  if (holder instanceof PyClass) return holder.put(name, value);
  const own = holder.cls.find("__setattr__");
  if (own) own(holder, name, value);
  else plainSetattr(holder, name, value);
  return null;
}

export function plainSetattr(holder, name, value) {
  const member = holder.cls.find(name);
  if (member instanceof Property) {
    if (member.set === null) fail(AttributeError, `property '${name}' of '${holder.cls.name}' object has no setter`);
    member.set(holder, value);
  } else holder.dict.set(name, value);
  return null;
}

// -- values --------------------------------------------------------------------------------------------------------

export function truth(given) {
  const value = bare(given);
  if (value === null || value === undefined) return false;
  if (Array.isArray(value) || typeof value === "string") return value.length > 0;
  if (value instanceof Map || value instanceof Set) return value.size > 0;
  if (value instanceof Instance) {
    const own = value.cls.find("__len__");
    return own ? own(value) > 0 : true;
  }
  return Boolean(value);
}

export function both(...values) {
  let last = null;
  for (const value of values) if (!truth(last = value())) return last;
  return last;
}
export function either(...values) {
  let last = null;
  for (const value of values) if (truth(last = value())) return last;
  return last;
}

export function* iterate(value) {
  yield* iter(value);
}
export function iter(value) {
  if (value instanceof Map) return [...value.keys()];
  if (value instanceof Instance) {
    const own = value.cls.find("__iter__");
    if (own) return iter(own(value));
  }
  if (value === null || value === undefined || typeof value[Symbol.iterator] !== "function") {
    fail(TypeError_, `'${typeOf(value).name}' object is not iterable`);
  }
  return value;
}
export function unpack(value, count) {
  const items = [...iter(value)];
  if (count >= 0 && items.length !== count) fail(ValueError, `not ${count} values to unpack but ${items.length}`);
  return items;
}

export function eq(left, right) {
  const one = bare(left), other = bare(right);
  if (one === other) return true;
  if (one === null || other === null || typeof one !== "object" || typeof other !== "object") {
    return (typeof one === "boolean" || typeof other === "boolean") && typeof one !== "string" && typeof other !== "string"
      && one !== null && other !== null && Number(one) === Number(other);
  }
  if (Array.isArray(one) && Array.isArray(other)) {
    return (one instanceof Tuple) === (other instanceof Tuple) && one.length === other.length
      && one.every((value, place) => eq(value, other[place]));
  }
  if (one instanceof Map && other instanceof Map) {
    return one.size === other.size && [...one].every(([key, value]) => other.has(key) && eq(value, other.get(key)));
  }
  if (one instanceof Set && other instanceof Set) return one.size === other.size && [...one].every((value) => other.has(value));
  return false;
}

export function within(value, holder) {
  if (holder instanceof Map || holder instanceof Set) return holder.has(bare(value));
  if (typeof holder === "string") return typeof value === "string" && holder.includes(value);
  for (const one of iter(holder)) if (eq(one, value)) return true;
  return false;
}

const subset = (one, other) => [...one].every((value) => other.has(value));
function compared(left, right) {
  const one = bare(left), other = bare(right);
  if (Array.isArray(one) && Array.isArray(other)) {
    for (let place = 0; place < Math.min(one.length, other.length); place++) {
      if (!eq(one[place], other[place])) return compared(one[place], other[place]);
    }
    return one.length - other.length;
  }
  if (typeof one !== typeof other || one === null || other === null) {
    if (!(["number", "boolean"].includes(typeof one) && ["number", "boolean"].includes(typeof other))) {
      fail(TypeError_, `'<' not supported between instances of '${typeOf(one).name}' and '${typeOf(other).name}'`);
    }
  }
  return one < other ? -1 : one > other ? 1 : 0;
}
export const lt = (one, other) => one instanceof Set ? one.size < other.size && subset(one, other) : compared(one, other) < 0;
export const le = (one, other) => one instanceof Set ? subset(one, other) : compared(one, other) <= 0;

export function add(one, other) {
  if (Array.isArray(one)) return one instanceof Tuple ? tuple([...one, ...other]) : [...one, ...other];
  return one + other;
}
export const iadd = (one, other) => {
  if (Array.isArray(one) && !(one instanceof Tuple)) {
    one.push(...iter(other));
    return one;
  }
  return add(one, other);
};
// Two views of items are arrays here, of pairs.
export const sub = (one, other) => one instanceof Set ? new Set([...one].filter((value) => !other.has(value)))
  : Array.isArray(one) ? one.filter((value) => !other.some((another) => eq(value, another))) : one - other;
export const isub = sub;
export function mul(one, other) {
  if (typeof one === "number" && Array.isArray(other)) return mul(other, one);
  if (Array.isArray(one)) {
    const all = Array.from({ length: Math.max(other, 0) }, () => [...one]).flat(1);
    return one instanceof Tuple ? tuple(all) : all;
  }
  return typeof one === "string" ? one.repeat(Math.max(other, 0)) : one * other;
}
export const imul = mul;
export const div = (one, other) => {
  if (Number(other) === 0) fail(exceptions.ZeroDivisionError ?? exception("ZeroDivisionError", Exception_), "division by zero");
  return one / other;
};
export const idiv = div;
export const floordiv = (one, other) => Math.floor(div(one, other));
export const mod = (one, other) => {
  div(1, other);
  return one - other * Math.floor(one / other);
};
// Roots as C has them, to the last bit.
export const pow = (one, other) => other === 0.5 ? Math.sqrt(one) : other === -0.5 ? reciprocalRoot(Number(one)) : one ** other;
// A Newton step from 1 / sqrt(x) with what products lose (Dekker 1971).
function reciprocalRoot(x) {
  const y = 1 / Math.sqrt(x), [square, lost] = product(y, y), [near, gone] = product(x, square);
  return Number.isFinite(near) ? y + 0.5 * y * (1 - near - gone - x * lost) : y;
}
function product(a, b) {
  const split = (v) => {
    const high = v * 134217729 - (v * 134217729 - v);
    return [high, v - high];
  };
  const whole = a * b, [ah, al] = split(a), [bh, bl] = split(b);
  return [whole, ah * bh - whole + ah * bl + al * bh + al * bl];
}
function or(one, other) {
  if (isType(one) || isType(other)) return new Union([...flat(one), ...flat(other)]);
  if (one instanceof Map) return new Map([...one, ...other]);
  if (one instanceof Set) return new Set([...one, ...other]);
  if (typeof one === "boolean" && typeof other === "boolean") return one || other;
  return one | other;
}
export { or, or as ior };
export const and = (one, other) => one instanceof Set ? new Set([...one].filter((value) => other.has(value))) : one & other;
export const iand = and;
export const xor = (one, other) => typeof one === "boolean" ? one !== other : one ^ other;

export function getitem(holder, key) {
  if (holder instanceof PyClass) return new Generic(holder, key instanceof Tuple ? [...key] : [key]);
  if (holder instanceof Map) return holder.has(key) ? holder.get(key) : raise(made(KeyError, [key]));
  if (holder instanceof Instance) return call(attr(holder, "__getitem__"), key);
  const place = key < 0 ? key + holder.length : key;
  return place >= 0 && place < holder.length ? holder[place] : fail(IndexError, "list index out of range");
}
export function setitem(holder, key, value) {
  if (holder instanceof Map) holder.set(key, value);
  else holder[key < 0 ? key + holder.length : key] = value;
}
export const delitem = (holder, key) => holder instanceof Map ? holder.delete(key) : holder.splice(key, 1);
export function slice(holder, from, to, step) {
  if (step === -1 && from === null && to === null) return typeof holder === "string" ? [...holder].reverse().join("") : [...holder].reverse();
  const part = holder.slice(from ?? 0, to ?? holder.length);
  const kept = step === null ? part : [...part].filter((_, place) => place % step === 0);
  return holder instanceof Tuple ? tuple(kept) : kept;
}
export const dict = (pairs) => new Map(pairs);
export function set(items) {
  const made = new Set();
  for (const one of items) {
    if (one !== null && typeof one === "object" && !(one instanceof PyClass)) {
      // Tuples by value.
      if (![...made].some((other) => eq(one, other))) made.add(one);
    } else made.add(one);
  }
  return made;
}
export const items = (map) => [...map];

// -- text ----------------------------------------------------------------------------------------------------------

export function text(value) {
  if (typeof value === "string") return value;
  if (value instanceof Instance && value.cls.mro.includes(Exception_)) {
    const args = value.dict.get("args");
    return args.length === 1 ? (value.cls.mro.includes(KeyError) ? repr(args[0]) : text(args[0])) : args.length ? repr(args) : "";
  }
  return repr(value);
}

export function repr(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return numeral(value);
  if (value instanceof Whole) return Math.abs(value) < 1e16 ? `${value}.0` : numeral10(Number(value));
  if (typeof value === "string") return quoted(value);
  if (value instanceof Tuple) return value.length === 1 ? `(${repr(value[0])},)` : `(${value.map(repr).join(", ")})`;
  if (Array.isArray(value)) return `[${value.map(repr).join(", ")}]`;
  if (value instanceof Map) return `{${[...value].map(([key, one]) => `${repr(key)}: ${repr(one)}`).join(", ")}}`;
  if (value instanceof Set) return value.size ? `{${[...value].map(repr).join(", ")}}` : "set()";
  if (value instanceof PyClass) return `<class '${value.name}'>`;
  if (value instanceof Union || value instanceof Generic) return typeName(value);
  return `<${typeOf(value).name} object>`;
}

function numeral(value) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (Number.isInteger(value)) return Math.abs(value) < 1e21 ? String(value) : BigInt(value).toString();
  const [digits, exponent] = String(value).split("e");
  const size = Math.abs(value);
  if (exponent === undefined && size >= 1e-4) return digits;
  if (exponent === undefined) return numeral10(value);
  const power = Number(exponent);
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}
// JavaScript writes 0.00001 where Python writes 1e-05.
function numeral10(value) {
  const [digits, power] = value.toExponential().split("e");
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(Number(power))).padStart(2, "0")}`;
}

function quoted(value) {
  const quote = value.includes("'") && !value.includes('"') ? '"' : "'";
  const escaped = value.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t").replaceAll("\r", "\\r");
  return quote + (quote === "'" ? escaped.replaceAll("'", "\\'") : escaped) + quote;
}

export function format(value, spec) {
  if (spec === "") return text(value);
  if (spec === "g") return general(value);
  if (spec === ",") return Number(value).toLocaleString("en-US", { maximumFractionDigits: 20 });
  if (/^\.\d+f$/.test(spec)) return Number(value).toFixed(Number(spec.slice(1, -1)));
  if (/^\.\d+g$/.test(spec)) return general(value, Number(spec.slice(1, -1)));
  return fail(ValueError, `format ${spec}`);
}
function general(value, digits = 6) {
  if (value === 0) return "0";
  const [mantissa, power] = Number(value).toExponential(digits - 1).split("e");
  const exponent = Number(power);
  const trim = (number) => number.includes(".") ? number.replace(/\.?0+$/, "") : number;
  if (exponent < -4 || exponent >= digits) {
    return `${trim(mantissa)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  return trim(Number(value).toFixed(Math.max(digits - 1 - exponent, 0)));
}

// -- methods of builtin types --------------------------------------------------------------------------------------

const STRING = {
  split: (self, by = null, most = -1) => {
    if (by === null) return self.trim() === "" ? [] : self.trim().split(/\s+/);
    const parts = self.split(by);
    return most < 0 || parts.length <= most + 1 ? parts : [...parts.slice(0, most), parts.slice(most).join(by)];
  },
  join: (self, parts) => [...iter(parts)].join(self),
  partition: (self, by) => {
    const place = self.indexOf(by);
    return tuple(place < 0 ? [self, "", ""] : [self.slice(0, place), by, self.slice(place + by.length)]);
  },
  rpartition: (self, by) => {
    const place = self.lastIndexOf(by);
    return tuple(place < 0 ? ["", "", self] : [self.slice(0, place), by, self.slice(place + by.length)]);
  },
  removeprefix: (self, start) => self.startsWith(start) ? self.slice(start.length) : self,
  removesuffix: (self, end) => end && self.endsWith(end) ? self.slice(0, -end.length) : self,
  startsWith: (self, start) => self.startsWith(start),
  startswith: (self, start) => [start].flat().some((one) => self.startsWith(one)),
  endswith: (self, end) => [end].flat().some((one) => self.endsWith(one)),
  lower: (self) => self.toLowerCase(),
  upper: (self) => self.toUpperCase(),
  capitalize: (self) => self.slice(0, 1).toUpperCase() + self.slice(1).toLowerCase(),
  strip: (self) => self.trim(),
  replace: (self, one, other) => self.replaceAll(one, other),
  isdecimal: (self) => /^\p{Nd}+$/u.test(self),
  format: (self, ...given) => {
    const named = given.at(-1) instanceof Keywords ? given.pop().map : new Map();
    let next = 0;
    return self.replace(/\{(\w*)(?::([^}]*))?\}/g, (_, name, spec = "") => format(name === "" ? given[next++] : named.get(name), spec));
  },
};
const LIST = {
  append: (self, value) => { self.push(value); return null; },
  extend: (self, values) => { self.push(...iter(values)); return null; },
  index: (self, value) => {
    const place = self.findIndex((one) => eq(one, value));
    return place < 0 ? fail(ValueError, `${repr(value)} is not in list`) : place;
  },
  count: (self, value) => self.filter((one) => eq(one, value)).length,
  pop: (self, place = -1) => self.splice(place, 1)[0],
  copy: (self) => [...self],
};
const DICT = {
  get: (self, key, otherwise = null) => self.has(key) ? self.get(key) : otherwise,
  items: (self) => [...self].map(tuple),
  keys: (self) => new Set(self.keys()),
  values: (self) => [...self.values()],
  pop: (self, key, ...otherwise) => {
    if (self.has(key)) {
      const value = self.get(key);
      self.delete(key);
      return value;
    }
    return otherwise.length ? otherwise[0] : raise(made(KeyError, [key]));
  },
  setdefault: (self, key, value = null) => {
    if (!self.has(key)) self.set(key, value);
    return self.get(key);
  },
  update: (self, other) => {
    const pairs = other instanceof Keywords ? other.map : other instanceof Map ? other : [...iter(other)];
    for (const [key, value] of pairs) self.set(key, value);
    return null;
  },
  copy: (self) => new Map(self),
};
const SET = {
  add: (self, value) => { self.add(value); return null; },
  update: (self, values) => { for (const one of iter(values)) self.add(one); return null; },
  isdisjoint: (self, values) => ![...iter(values)].some((one) => self.has(one)),
  discard: (self, value) => { self.delete(value); return null; },
};
const fromkeys = (keys, value = null) => new Map([...iter(keys)].map((key) => [key, value]));

// -- builtin functions ---------------------------------------------------------------------------------------------

const sortKey = (options) => options instanceof Keywords ? options.map.get("key") ?? null : null;
function sorted(values, options = null) {
  const key = sortKey(options) ?? ((value) => value);
  const keyed = [...iter(values)].map((value) => [call(key, value), value]);
  keyed.sort(([one], [other]) => compared(one, other));
  if (options?.map.get("reverse")) keyed.reverse();
  return keyed.map(([, value]) => value);
}
function best(sign) {
  return (...given) => {
    const options = given.at(-1) instanceof Keywords ? given.pop() : null;
    const values = given.length === 1 ? [...iter(given[0])] : given;
    const key = sortKey(options) ?? ((value) => value);
    if (!values.length) return options?.map.has("default") ? options.map.get("default") : fail(ValueError, "max() of nothing");
    return values.reduce((one, other) => compared(call(key, other), call(key, one)) * sign > 0 ? other : one);
  };
}
function zip(...given) {
  const options = given.at(-1) instanceof Keywords ? given.pop().map : new Map();
  const lists = given.map((one) => [...iter(one)]);
  const lengths = lists.map((one) => one.length);
  const length = Math.min(...lengths);
  if (options.get("strict") && lengths.some((one) => one !== length)) fail(ValueError, "zip() of lists of different lengths");
  return Array.from({ length }, (_, place) => tuple(lists.map((one) => one[place])));
}
const deepcopied = (value) => {
  if (Array.isArray(value)) {
    const copied = value.map(deepcopied);
    return value instanceof Tuple ? tuple(copied) : copied;
  }
  if (value instanceof Map) return new Map([...value].map(([key, one]) => [key, deepcopied(one)]));
  if (value instanceof Set) return new Set(value);
  if (value instanceof Instance) return copied(value, deepcopied);
  return value;
};
function copied(value, inner = (one) => one) {
  if (!(value instanceof Instance)) return Array.isArray(value) ? [...value] : new Map(value);
  const made = new Instance(value.cls);
  for (const [key, one] of value.dict) made.dict.set(key, inner(one));
  return made;
}
const cached = (work) => {
  const known = new Map();
  return (...given) => {
    if (!known.has(given[0])) known.set(given[0], call(work, ...given));
    return known.get(given[0]);
  };
};

export const builtins = {
  object, int, bool, float, str, list, tuple: tupleType, dict: dictType, set: setType, ...exceptions, property: null,
  Exception: Exception_, isinstance, repr, sorted, zip, super_,
  type: type_,
  classmethod: (wrapped) => new ClassMethod(wrapped),
  staticmethod: (wrapped) => new StaticMethod(wrapped),
  any: (values) => [...iter(values)].some(truth),
  all: (values) => [...iter(values)].every(truth),
  max: best(1),
  min: best(-1),
  sum: (values, start = 0) => [...iter(values)].reduce((one, other) => add(one, Number(other)), start),
  len: (value) => value instanceof Map || value instanceof Set ? value.size : value.length,
  range: (...given) => {
    const [from, to, step = 1] = given.length === 1 ? [0, given[0]] : given;
    return Array.from({ length: Math.max(Math.ceil((to - from) / step), 0) }, (_, place) => from + place * step);
  },
  enumerate: (values, options = null) => {
    const start = options instanceof Keywords ? options.map.get("start") : options ?? 0;
    return [...iter(values)].map((value, place) => tuple([place + start, value]));
  },
  reversed: (values) => [...iter(values)].reverse(),
  iter: (values) => [...iter(values)],
  next: (values, ...otherwise) => {
    const [first] = iter(values);
    if (first !== undefined) return first;
    return otherwise.length ? otherwise[0] : fail(StopIteration, "");
  },
  divmod: (one, other) => tuple([floordiv(one, other), mod(one, other)]),
  abs: Math.abs,
  round: Math.round,
  vars: (value) => value instanceof PyClass ? value.own : value.dict,
  getattr: (holder, name, ...otherwise) => {
    if (!otherwise.length) return attr(holder, name);
    try {
      const value = found(holder, name);
      return value === undefined ? otherwise[0] : value;
    } catch (error) {
      if (caughtBy(error, [AttributeError])) return otherwise[0];
      throw error;
    }
  },
  setattr,
  hasattr: (holder, name) => builtins.getattr(holder, name, undefined) !== undefined,
  callable: (value) => typeof value === "function",
  print: () => null,
  NotImplementedError: exception("NotImplementedError", Exception_),
};
builtins.property = (get, set = null) => new Property(get, set);
export const copy = (value) => copied(value);
export const deepcopy = deepcopied;
export const cache = cached;
export { none, int, float, str, bool, list, dictType, tupleType, setType, TypeError_, ValueError, AttributeError, KeyError, isinstance, made };

// -- there and back ------------------------------------------------------------------------------------------------

// JSON as Python reads it: 1.0 is not 1.
export function parseJson(text) {
  const marked = text.replace(/"(?:[^"\\]|\\.)*"|-?(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|Infinity)|NaN/g, (token) => {
    if (token[0] === '"' || !/[.eEIN]/.test(token)) return token;
    return /[IN]/.test(token) ? `{"$float": "${token}"}` : Number.isInteger(Number(token)) ? `{"$float": ${token}}` : token;
  });
  return JSON.parse(marked);
}

// JSON values as Python's, and the other way.
export function fromJson(value) {
  if (Array.isArray(value)) return value.map(fromJson);
  if (value !== null && typeof value === "object") {
    if ("$float" in value) return Number.isFinite(Number(value.$float)) ? whole(Number(value.$float)) : Number(value.$float);
    return new Map(Object.entries(value).map(([key, one]) => [key, fromJson(one)]));
  }
  return value;
}
export function toJson(value) {
  if (value instanceof Whole) return value.valueOf();
  if (Array.isArray(value)) return value.map(toJson);
  if (value instanceof Set) return [...value].map(toJson);
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, one]) => [key === null ? "null" : key, toJson(one)]));
  if (value instanceof Instance) return toJson(value.dict);
  return value;
}

// The text of config.json: as Python writes it, two spaces deep.
export function jsonText(value, indent = "") {
  const deeper = `${indent}  `;
  if (value instanceof Map && value.size) {
    return `{\n${[...value].map(([key, one]) => `${deeper}${JSON.stringify(String(key))}: ${jsonText(one, deeper)}`).join(",\n")}\n${indent}}`;
  }
  if (Array.isArray(value) && value.length) return `[\n${value.map((one) => deeper + jsonText(one, deeper)).join(",\n")}\n${indent}]`;
  if (value instanceof Map) return "{}";
  return typeof value === "number" || value instanceof Whole ? repr(value) : JSON.stringify(value);
}
