package doctor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	authnv1 "k8s.io/api/authentication/v1"
	authv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Rights may be granted everywhere, by a ClusterRoleBinding, or namespace by
// namespace, by RoleBindings, and an API server that is asked about everywhere says
// no to the latter. So what is refused everywhere is asked again for each namespace
// that the observer is to watch.

// mostNamespaces bounds in how many namespaces it is looked whether a right is
// granted there, where nobody says which are to be watched.
const mostNamespaces = 20

// everywhere are the rights of deploy/observer.yaml that concern runs: in every
// namespace that is watched.
func everywhere() []Right {
	var out []Right
	for _, resource := range []string{"taskruns", "pipelineruns"} {
		for _, verb := range []string{"get", "list", "watch", "patch"} {
			out = append(out, Right{Verb: verb, Group: tektonGroup.Group, Resource: resource})
		}
	}
	return append(out,
		Right{Verb: "create", Resource: "events"},
		Right{Verb: "get", Resource: "serviceaccounts"},
		Right{Verb: "get", Resource: "secrets"},
	)
}

// within are those that concern its own namespace.
func within(namespace string) []Right {
	return []Right{
		{Verb: "watch", Resource: "configmaps", Name: ConfigMapName, Namespace: namespace},
		{Verb: "list", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace},
		{Verb: "create", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace},
		{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: namespace},
		{Verb: "get", Group: "apps", Resource: "deployments", Name: DeploymentName, Namespace: namespace},
	}
}

func (r *reader) rights(ctx context.Context) error {
	ask, err := r.asker(ctx)
	if err != nil {
		return err
	}
	for _, x := range everywhere() {
		if x.Allowed, err = ask(x); err != nil {
			return err
		}
		switch {
		case x.Allowed:
			r.w.Rights = append(r.w.Rights, x)
		case len(r.w.Namespaces) > 0:
			for _, ns := range r.w.Namespaces {
				in := x
				in.Namespace = ns
				if in.Allowed, err = ask(in); err != nil {
					return err
				}
				r.w.Rights = append(r.w.Rights, in)
			}
		default:
			for i, ns := range slices.Sorted(maps.Keys(r.seen)) {
				if i == mostNamespaces {
					break
				}
				in := x
				in.Namespace = ns
				if in.Allowed, err = ask(in); err != nil {
					return err
				}
				if in.Allowed {
					x.GrantedIn = append(x.GrantedIn, ns)
				}
			}
			r.w.Rights = append(r.w.Rights, x)
		}
	}
	for _, x := range within(r.o.Namespace) {
		if x.Allowed, err = ask(x); err != nil {
			return err
		}
		r.w.Rights = append(r.w.Rights, x)
	}
	return nil
}

// asker asks about the rights of the observer's account. Who is that account asks
// about itself, which everybody may; others ask by a SubjectAccessReview, for which
// they need a right of their own.
func (r *reader) asker(ctx context.Context) (func(Right) (bool, error), error) {
	account := "system:serviceaccount:" + r.o.Namespace + ":assay-observer"
	me, err := r.client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authnv1.SelfSubjectReview{}, metav1.CreateOptions{})
	self := err == nil && me.Status.UserInfo.Username == account
	return func(x Right) (bool, error) {
		attributes := &authv1.ResourceAttributes{
			Verb: x.Verb, Group: x.Group, Resource: x.Resource, Name: x.Name, Namespace: x.Namespace,
		}
		if self {
			a, err := r.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx,
				&authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: attributes}}, metav1.CreateOptions{})
			if err != nil {
				return false, err
			}
			return a.Status.Allowed, nil
		}
		a, err := r.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authv1.SubjectAccessReview{
			Spec: authv1.SubjectAccessReviewSpec{
				User:               account,
				Groups:             []string{"system:serviceaccounts", "system:serviceaccounts:" + r.o.Namespace, "system:authenticated"},
				ResourceAttributes: attributes,
			},
		}, metav1.CreateOptions{})
		if apierrors.IsForbidden(err) {
			return false, fmt.Errorf("%w; or run this as %s itself, which may ask about its own rights", err, account)
		}
		if err != nil {
			return false, err
		}
		return a.Status.Allowed, nil
	}, nil
}

// watched are the namespaces that a controller's arguments name.
func watched(args []string) []string {
	var out []string
	for i, a := range args {
		value, ok := strings.CutPrefix(strings.TrimPrefix(a, "-"), "-namespace=")
		if (a == "--namespace" || a == "-namespace") && i+1 < len(args) {
			value, ok = args[i+1], true
		}
		if !ok {
			continue
		}
		for ns := range strings.SplitSeq(value, ",") {
			if ns = strings.TrimSpace(ns); ns != "" && !slices.Contains(out, ns) {
				out = append(out, ns)
			}
		}
	}
	return out
}

// rights says what the observer's account lacks.
func (r *Report) rights(w World) {
	if w.Unreadable["Rights"] != "" || len(w.Rights) == 0 {
		return
	}
	var missing []string
	var partly []string // namespaces that grant everything that is missing everywhere
	allPartly := true
	for _, x := range w.Rights {
		if x.Allowed {
			continue
		}
		missing = append(missing, x.String())
		if len(x.GrantedIn) == 0 {
			allPartly = false
			continue
		}
		if partly == nil {
			partly = slices.Clone(x.GrantedIn)
		}
		partly = slices.DeleteFunc(partly, func(ns string) bool { return !slices.Contains(x.GrantedIn, ns) })
	}
	account := "system:serviceaccount:" + w.Namespace + ":assay-observer"
	where := ""
	if len(w.Namespaces) > 0 {
		where = " in the namespaces that it watches, " + strings.Join(w.Namespaces, ", ")
	}
	switch {
	case len(missing) == 0:
		r.add("Rights", Same, "", "%s has all %d rights it needs%s", account, len(w.Rights), where)
	case allPartly && len(partly) > 0:
		r.add("Rights", Apply, "start it with --namespace="+strings.Join(partly, ",")+" (and give that list to this command by --watch); or grant the rights everywhere: kubectl apply -f deploy/observer.yaml",
			"%s has its rights by Roles, in %s only, and not everywhere", account, strings.Join(partly, ", "))
	default:
		r.add("Rights", Apply, "kubectl apply -f deploy/observer.yaml, or the Helm chart", "%s lacks: %s", account, strings.Join(missing, "; "))
	}
}
