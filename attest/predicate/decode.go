package predicate

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"assay.dev/assay/attest/strictjson"
)

// decode reads JSON that passed strictjson.Check into a struct. Where encoding/json
// would take a member of another case for a known one, it is an error.
func decode(raw []byte, into any) error {
	if err := exact(raw, reflect.TypeOf(into)); err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// exact compares the names of members with those that a Go type has.
func exact(raw []byte, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler) {
		return nil
	}
	kind := strictjson.Kind(raw)
	switch {
	case t.Kind() == reflect.Struct && kind == "object":
		m, err := strictjson.Object(raw)
		if err != nil {
			return err
		}
		fields := map[string]reflect.Type{}
		collect(t, fields)
		names := make([]string, 0, len(fields))
		for name := range fields {
			names = append(names, name)
		}
		for name, value := range m {
			if ft, ok := fields[name]; ok {
				if err := exact(value, ft); err != nil {
					return err
				}
				continue
			}
			if i := slices.IndexFunc(names, func(n string) bool { return strings.EqualFold(n, name) }); i >= 0 {
				return fmt.Errorf("member %q differs from %q in case alone", name, names[i])
			}
		}
	case t.Kind() == reflect.Map && kind == "object":
		m, err := strictjson.Object(raw)
		if err != nil {
			return err
		}
		for _, value := range m {
			if err := exact(value, t.Elem()); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Slice && kind == "array":
		list, err := strictjson.Array(raw)
		if err != nil {
			return err
		}
		for _, value := range list {
			if err := exact(value, t.Elem()); err != nil {
				return err
			}
		}
	}
	return nil
}

// collect lists a struct's members by the names that encoding/json gives them.
func collect(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "":
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			collect(ft, into)
		case !f.IsExported():
		case name == "":
			into[f.Name] = f.Type
		default:
			into[name] = f.Type
		}
	}
}
