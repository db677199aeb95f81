// What the API server itself says of manifests, without a cluster: its strict decoding, its defaults and the validation
// of its registries for Kubernetes' own kinds; structural schemas, defaults and rules in CEL for custom ones.
//
// usage: apiserver-validate [DEFINITION...] < manifests
//
// DEFINITION is a file with CustomResourceDefinitions. Prints a line for each thing that would be refused; ends with 1 if
// there was any.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	apicel "k8s.io/apiserver/pkg/apis/cel"
	genericrequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
	sigsyaml "sigs.k8s.io/yaml"
)

// strategies are what the server's registries do to an object that is created.
var strategies = map[string]rest.RESTCreateStrategy{
	"ConfigMap":               configmap.Strategy,
	"Deployment":              deployment.Strategy,
	"HorizontalPodAutoscaler": horizontalpodautoscaler.Strategy,
	"NetworkPolicy":           networkpolicy.Strategy,
	"Pod":                     pod.Strategy,
	"PodDisruptionBudget":     poddisruptionbudget.Strategy,
	"Service":                 service.Strategy,
	"ServiceAccount":          serviceaccount.Strategy,
}

// builtin creates one of Kubernetes' own objects, as far as that goes without storage.
func builtin(text []byte, kind, namespace string) error {
	scheme := legacyscheme.Scheme
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	versioned, _, err := strict.Decode(text, nil, nil)
	if err != nil {
		return err
	}
	scheme.Default(versioned)
	internal, err := scheme.UnsafeConvertToVersion(versioned, runtime.InternalGroupVersioner)
	if err != nil {
		return err
	}
	strategy, known := strategies[kind]
	if !known {
		return fmt.Errorf("no registry for this kind here")
	}
	ctx := genericrequest.WithNamespace(context.Background(), namespace)
	return rest.BeforeCreate(strategy, ctx, internal)
}

// custom is one version of a custom kind.
type custom struct {
	schema *structural.Structural
	props  *apiextensions.JSONSchemaProps
}

// definitions reads the custom kinds of a file, by group, version and kind.
func definitions(path string, into map[string]custom) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := decoder.Decode(&crd); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, version := range crd.Spec.Versions {
			if version.Schema == nil || version.Schema.OpenAPIV3Schema == nil {
				continue
			}
			var props apiextensions.JSONSchemaProps
			if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(version.Schema.OpenAPIV3Schema, &props, nil); err != nil {
				return err
			}
			schema, err := structural.NewStructural(&props)
			if err != nil {
				return err
			}
			into[crd.Spec.Group+"/"+version.Name+" "+crd.Spec.Names.Kind] = custom{schema, &props}
		}
	}
}

// check creates a custom object, as far as that goes without storage.
func (one custom) check(object map[string]any) error {
	defaulting.Default(object, one.schema)
	options := structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	unknown := pruning.PruneWithOptions(object, one.schema, true, options)
	var found field.ErrorList
	for _, path := range unknown {
		found = append(found, field.Forbidden(field.NewPath(path), "unknown field"))
	}
	validator, _, err := crdvalidation.NewSchemaValidator(one.props)
	if err != nil {
		return err
	}
	found = append(found, crdvalidation.ValidateCustomResource(nil, object, validator)...)
	if rules := cel.NewValidator(one.schema, true, apicel.PerCallLimit); rules != nil {
		failed, _ := rules.Validate(context.Background(), nil, one.schema, object, nil, apicel.RuntimeCELCostBudget)
		found = append(found, failed...)
	}
	return found.ToAggregate()
}

func run() (int, error) {
	kinds := map[string]custom{}
	for _, path := range os.Args[1:] {
		if err := definitions(path, kinds); err != nil {
			return 0, err
		}
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 0, err
	}
	refused := 0
	for _, document := range strings.Split("\n"+string(text), "\n---\n") {
		var object map[string]any
		if err := sigsyaml.Unmarshal([]byte(document), &object); err != nil {
			return 0, err
		}
		if len(object) == 0 {
			continue
		}
		meta := unstructured.Unstructured{Object: object}
		namespace := meta.GetNamespace()
		if namespace == "" {
			namespace = "default"
		}
		meta.SetNamespace(namespace)
		named := fmt.Sprintf("%s %s", meta.GetKind(), meta.GetName())
		gvk := meta.GroupVersionKind()
		if one, known := kinds[meta.GetAPIVersion()+" "+meta.GetKind()]; known {
			err = one.check(object)
		} else if legacyscheme.Scheme.Recognizes(gvk) {
			raw, marshalling := sigsyaml.Marshal(object)
			if marshalling != nil {
				return 0, marshalling
			}
			err = builtin(raw, meta.GetKind(), namespace)
		} else {
			err = fmt.Errorf("no such kind: %s", gvk)
		}
		if err != nil {
			refused++
			fmt.Printf("%s: %s\n", named, strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Printf("%s: ok\n", named)
		}
	}
	return refused, nil
}

func main() {
	refused, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if refused > 0 {
		os.Exit(1)
	}
}
